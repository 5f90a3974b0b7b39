"""The networks of Attend-Fusion: the published sizes, and what must hold for each of them on odd input."""
import logging
import time

import numpy as np
import pytest
import torch

from avbook.classification import fusion
from avbook.classification.fusion import ModalityGate, ProductGate, RowNorm, read_rows
from avbook.classification.metrics import multi_label_loss
from avbook.classification.model import build_model, model_names, size_report
from avbook.classification.paper import printed, published

EXACT = {  # biases and layer norms included: with encoder units, with narrow units
    "FC Audio": (102_772_716,)*2, "FC Visual": (109_940_716,)*2, "FC Early Fusion": (110_964_716,)*2,
    "FC Late Fusion": (340_724_716,)*2, "FC Residual Early Fusion": (174_972_716,)*2,
    "FC Residual Late Fusion": (340_724_716,)*2, "FC Residual Gated Early Fusion": (174_972_716,)*2,
    "FC Residual Gated Late Fusion": (416_185_432,)*2, "FC Attention": (83_405_420, 83_393_132),
    "Residual Attention Early Fusion": (79_209_068, 79_196_780),
    "Residual Attention Late Fusion": (83_405_420, 83_393_132), "Attend-Fusion": (72_084_076, 72_071_788),
    "Audio-Visual Attention Network": (112_790_124, 112_773_740),
    "Self and Cross Modal Attention Network": (171_582_060, 171_553_388),
    "Self-Attended Cross-Modal FCRN Network": (171_582_060, 171_553_388),
    "Attend-Fusion Audio Only": (35_126_892, 35_120_748), "Attend-Fusion Visual Only": (36_961_900, 36_955_756),
    "Attend-Fusion No Attention": (21_684_844,)*2,
}
SMALL = dict(num_classes=5, hidden=16, audio_width=6, visual_width=10)
each_network = pytest.mark.parametrize("name", model_names())


@pytest.fixture
def batch():
    "Three videos of five, three and one real rows, with NaN where there is no row."
    torch.manual_seed(0)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])
    return *(torch.randn(3, 5, width).masked_fill(~mask[..., None], torch.nan) for width in (6, 10)), mask


def small(name, **options): return build_model(name, **(SMALL | options)).eval()


def test_sizes_are_the_published_ones_within_a_second():
    began = time.perf_counter()
    report = size_report()
    assert time.perf_counter() - began < 1
    assert dict(zip(report.name, report.parameters, strict=True)) == {name: both[0] for name,both in EXACT.items()}
    assert report.agrees.all()
    narrow = size_report(unit_kind="narrow")
    assert dict(zip(narrow.name, narrow.parameters, strict=True)) == {name: both[1] for name,both in EXACT.items()}
    assert narrow.agrees.all()


def test_every_published_row_can_be_built_and_every_network_is_published():
    assert set(published().method) == set(model_names())
    assert list(printed().index) == model_names()[:15]


def test_published_values_carry_their_units():
    values = published().query("method == 'FC Late Fusion' and table == 'Table 2'").set_index("metric").value
    assert values.to_dict() == dict(gap=.8087, f1=.7596, parameters=341e6)


@each_network
@pytest.mark.parametrize("options", [{}, dict(unit_kind="narrow"), dict(heads=2, fc_norm="layer", input_norm="l2"),
                                     dict(late_gate="modality", fc_norm="batch", input_norm="l2_per_modality")],
                         ids=["default", "narrow", "layer", "batch"])
def test_scores_of_a_video_depend_on_nothing_else(name, options, batch):
    network,(audio,visual,mask) = small(name, **options),batch
    with torch.no_grad():
        scores = network(audio, visual, mask)
        assert scores.shape == (3, 5) and scores.isfinite().all()
        alone = torch.cat([network(audio[video:video + 1, :n_rows], visual[video:video + 1, :n_rows])
                           for video,n_rows in enumerate((5, 3, 1))])
        assert torch.allclose(scores, alone, atol=1e-5)
        assert torch.allclose(network(audio.flip(0), visual.flip(0), mask.flip(0)), scores.flip(0), atol=1e-5)
        order = [3, 0, 4, 1, 2]   # rows are a set
        assert torch.allclose(network(audio[:, order], visual[:, order], mask[:, order]), scores, atol=1e-5)
        first = network(audio[:, 0], visual[:, 0])
        assert torch.allclose(first, network(audio[:, :1], visual[:, :1]), atol=1e-6)


@each_network
def test_one_batch_can_be_learnt_and_a_saved_network_gives_the_same_scores(name, tmp_path):
    torch.manual_seed(0)
    audio,visual,labels = torch.randn(8, 2, 6),torch.randn(8, 2, 10),torch.rand(8, 5) < .4
    network = small(name, hidden=24, dropout=0.).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        loss = multi_label_loss(network(audio, visual), labels)
        loss.backward()
        optimiser.step()
    assert loss < .2
    torch.save(network.state_dict(), tmp_path/"weights.pt")
    again = small(name, hidden=24, dropout=0.)
    again.load_state_dict(torch.load(tmp_path/"weights.pt", weights_only=True))
    with torch.no_grad(): assert torch.equal(again(audio, visual), network.eval()(audio, visual))


@each_network
def test_every_parameter_is_reached_by_the_loss(name, batch):
    network = small(name)
    network(*batch).square().sum().backward()
    assert [part for part,parameter in network.named_parameters() if parameter.grad is None] == []


@each_network
def test_a_missing_modality_reads_as_zeros(name, batch):
    network,(audio,visual,mask) = small(name),batch
    with torch.no_grad():
        for given,zeroed in (((None, visual), (torch.zeros_like(audio), visual)),
                             ((audio, None), (audio, torch.zeros_like(visual)))):
            if all(modality is None for modality in (given[("audio", "visual").index(used)] for used in network.reads)):
                with pytest.raises(ValueError, match="got None"): network(*given, mask)
            else: assert torch.equal(network(*given, mask), network(*zeroed, mask))
    with pytest.raises(ValueError, match="got None"): network(None, None)


@each_network
def test_a_video_without_a_single_row_gets_finite_scores_and_gradients(name, batch):
    audio,visual,mask = batch
    network = small(name)
    scores = network(audio, visual, mask & (torch.arange(3) > 0)[:, None])
    scores.sum().backward()
    assert scores.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    with torch.no_grad():
        assert torch.allclose(scores[:1], network(torch.zeros(1, 6), torch.zeros(1, 10)), atol=1e-5)


@pytest.mark.parametrize("name", ["FC Residual Gated Late Fusion", "Residual Attention Early Fusion",
                                  "Self-Attended Cross-Modal FCRN Network"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_half_precision_training_step(name, norm, batch):
    network = small(name, fc_norm=norm).train()
    with torch.autocast("cpu", torch.bfloat16): scores = network(*batch)
    multi_label_loss(scores, torch.zeros(3, 5)).backward()
    assert scores.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", ["FC Late Fusion", "Attend-Fusion", "Self-Attended Cross-Modal FCRN Network"])
def test_exports_with_free_batch_and_row_counts(name, batch):
    network,(audio,visual,mask) = small(name),batch
    audio,visual = audio.nan_to_num(),visual.nan_to_num()
    free = {0: torch.export.Dim("videos", max=4096), 1: torch.export.Dim("rows", min=2, max=300)}
    program = torch.export.export(network, (audio, visual, mask), dynamic_shapes=[free]*3).module()
    wider = audio.repeat(2, 2, 1),visual.repeat(2, 2, 1),mask.repeat(2, 2)
    with torch.no_grad(): assert torch.allclose(program(*wider), network(*wider), atol=1e-6)


def test_a_single_token_leaves_queries_and_keys_untrained(caplog):
    def first_gradients(**options):
        network = small("Attend-Fusion", **options)
        network(torch.randn(4, 6), torch.randn(4, 10)).square().sum().backward()
        attention = network.audio[1].units[0].attention
        return [layer.weight.grad.abs().max().item() for layer in (attention.query, attention.key, attention.value)]
    fusion._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "avbook.classification.fusion"):
        query,key,value = first_gradients(unit_kind="narrow")
        assert max(query, key) < 1e-6*value
        first_gradients(unit_kind="narrow")
    assert [record.message for record in caplog.records].count(
        "attention over a single token: queries and keys cannot be trained") == 1
    query,key,value = first_gradients()
    assert min(query, key) > 1e-3*value
    query,key,value = first_gradients(attention_width=16)   # one token a row again
    assert max(query, key) < 1e-6*value


def test_paths_around_cost_nothing():
    sizes = size_report().set_index("name").parameters
    for plain,twin in (("FC Late Fusion", "FC Residual Late Fusion"),
                       ("FC Attention", "Residual Attention Late Fusion"),
                       ("Self and Cross Modal Attention Network", "Self-Attended Cross-Modal FCRN Network")):
        assert sizes[plain] == sizes[twin]


@pytest.mark.parametrize("gate", [ProductGate, ModalityGate])
def test_gates_have_finite_gradients_where_probabilities_round_to_0_and_1(gate):
    head = gate(4, 3)
    with torch.no_grad():
        for parameter in head.parameters(): parameter.mul_(1000)
    scores = head(torch.randn(64, 4)*10)
    multi_label_loss(scores, torch.ones_like(scores)).backward()
    assert scores.isfinite().all() and scores.abs().max() > 80
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_batch_statistics_leave_padding_out():
    torch.manual_seed(0)
    rows,mask = torch.randn(4, 3, 2),torch.arange(3) < torch.tensor([[3], [2], [1], [1]])
    filled = rows.masked_fill(~mask[..., None], 1e6)
    plain,padded = RowNorm("batch", 2),RowNorm("batch", 2)
    assert torch.allclose(plain(rows[mask]), padded(filled, mask)[mask], atol=1e-6)
    assert torch.equal(plain.norm.running_mean, padded.norm.running_mean)


def test_starting_at_the_prior():
    for name in model_names():
        probabilities = small(name, num_classes=100, labels_per_video=3.)(torch.zeros(1, 6), torch.zeros(1, 10)).sigmoid()
        assert .015 < probabilities.mean().item() < .06, name


def test_the_published_network_runs_at_full_width():
    network = build_model("Attend-Fusion").eval()
    with torch.no_grad(): scores = network(torch.randn(2, 128), torch.randn(2, 1024))
    assert scores.shape == (2, 4716) and scores.isfinite().all()


@pytest.mark.parametrize("wrong, words", [
    (dict(name="attend-fusion"), "did you mean 'Attend-Fusion'"), (dict(name="xyzzy"), "no network is called"),
    (dict(hiden=3), "'hiden' is no option"), (dict(hidden=0), "hidden is 0"), (dict(num_classes=0), "num_classes is 0"),
    (dict(dropout=1.5), "dropout is 1.5"), (dict(heads=3), "3 heads do not divide"),
    (dict(attention_width=5), "does not divide rows of 16"), (dict(fc_norm="group"), "norm is 'group'"),
    (dict(unit_kind="wide"), "unit_kind is 'wide'"), (dict(input_norm="max"), "input_norm is 'max'"),
    (dict(late_gate="sum"), "late_gate is 'sum'")])
def test_wrong_options_are_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")): small(**(dict(name="Attend-Fusion") | wrong))


@pytest.mark.parametrize("audio, visual, mask, words", [
    (torch.zeros(2, 3, 6), torch.zeros(2, 4, 10), None, r"audio has .* \(2, 3\) but visual \(2, 4\)"),
    (torch.zeros(2, 10), torch.zeros(2, 6), None, r"audio is \(2, 10\)"),
    (torch.zeros(2, 6).byte(), torch.zeros(2, 10), None, "audio is torch.uint8"),
    (torch.zeros(6), torch.zeros(10), None, r"audio is \(6,\)"),
    (torch.zeros(2, 3, 6), torch.zeros(2, 3, 10), torch.ones(2, 4) > 0, "one flag a row"),
    (torch.zeros(2, 3, 6), torch.zeros(2, 3, 10), torch.ones(2, 3), "mask is torch.float32")])
def test_wrong_input_is_refused_in_words(audio, visual, mask, words):
    with pytest.raises(ValueError, match=words): small("Attend-Fusion")(audio, visual, mask)


def test_row_readings_of_the_real_record(samples):
    record = np.load(samples/"yt8m"/"frame_example_SjJ3.npz")
    frames = torch.from_numpy(record["rgb"]).float()*(4/255) + (4/512 - 2)
    rows,_ = read_rows(frames[None], rows="mf_std")
    assert np.allclose(rows[0, 0], frames.numpy().mean(0), atol=1e-5)
    assert np.allclose(rows[0, 1], frames.numpy().std(0), atol=1e-5)
