"""YouTube-8M records against other programs, against damage, against kills; 100,000 mutated records with AVBOOK_FUZZ=100000.

    AVBOOK_FUZZ=100000 python -m pytest -q tests/test_classification_data.py -k mutated
"""
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from torch.utils.data import DataLoader

from avbook.classification.data import MapBatches, RecordMap, RecordStream, convert, to_rows, to_sample, verify_map
from avbook.classification.metrics import Tally, class_average_precision, gap, map_top20
from avbook.classification.records import (
    WIDTHS,
    Record,
    RecordError,
    Segment,
    dequantize,
    frame_payload,
    parse_record,
    quantize,
    read_payloads,
    read_records,
    to_payload,
    write_records,
)
from avbook.repro import samples_folder

N_MUTATED = int(os.environ.get("AVBOOK_FUZZ", 3000))

# ------------------------------------------------ another program: TensorFlow's own description, and a plain CRC
PROTO = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "Int64List" oneof_index: 0 } }
message_type { name: "Features"
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "Feature" } }
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "FeatureEntry" } }
message_type { name: "FeatureList"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "Feature" } }
message_type { name: "FeatureLists"
  nested_type { name: "FeatureListEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "FeatureList" } }
  field { name: "feature_list" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "FeatureListEntry" } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "Features" } }
message_type { name: "SequenceExample"
  field { name: "context" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "Features" }
  field { name: "feature_lists" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "FeatureLists" } }
"""


def tensorflow_messages():
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(PROTO, descriptor_pb2.FileDescriptorProto()))
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.{name}"))
            for name in ("Example", "SequenceExample")]


Example,SequenceExample = tensorflow_messages()


def plain_checksum(content):
    "Masked CRC32C, a bit at a time."
    register = 0xffffffff
    for byte in content:
        register ^= byte
        for _ in range(8): register = register >> 1 ^ (0x82f63b78 if register & 1 else 0)
    register ^= 0xffffffff
    return ((register >> 15 | register << 17) + 0xa282ead8) % 2**32


def plain_frame(payload):
    length = len(payload).to_bytes(8, "little")
    return (length + plain_checksum(length).to_bytes(4, "little") + payload
            + plain_checksum(payload).to_bytes(4, "little"))


def other_frame_level(record, id_name="id"):
    "A frame-level message as TensorFlow's classes make it."
    message = SequenceExample()
    message.context.feature[id_name].bytes_list.value.append(record.id.encode())
    message.context.feature["labels"].int64_list.value.extend(record.labels.tolist())
    for name in WIDTHS:
        for step in getattr(record, name):
            message.feature_lists.feature_list[name].feature.add().bytes_list.value.append(step.tobytes())
    return message.SerializeToString()


def other_video_level(record):
    message = Example()
    message.features.feature["id"].bytes_list.value.append(record.id.encode())
    message.features.feature["labels"].int64_list.value.extend(record.labels.tolist())
    for name in WIDTHS: message.features.feature[f"mean_{name}"].float_list.value.extend(getattr(record, name).tolist())
    return message.SerializeToString()


def other_reading(payload):
    "id, labels, picture, sound of a message, by TensorFlow's description and nothing of ours."
    message = SequenceExample.FromString(payload)
    context,lists = message.context.feature,message.feature_lists.feature_list
    def of(name, kind): return list(getattr(context[name], kind).value) if name in context else []
    def steps(name):
        found = [step.bytes_list.value[0] for step in lists[name].feature] if name in lists else []
        return np.frombuffer(b"".join(found), np.uint8).reshape(-1, WIDTHS[name]) if found else np.zeros(0)
    is_frame_level = "rgb" in lists or "audio" in lists
    features = [steps(name) if is_frame_level else np.float32(of(f"mean_{name}", "float_list")) for name in WIDTHS]
    identity = of("id", "bytes_list") if context["id"].ByteSize() else of("video_id", "bytes_list")
    return identity[0].decode(), of("labels", "int64_list"), *features


def is_same(record, other):
    "Whether our record says what the other reading says; a missing modality is all zero there."
    pairs = zip((record.rgb, record.audio), other[2:], strict=True)
    return (record.id == other[0] and record.labels.tolist() == other[1]
            and all(not values.any() if ours is None else np.array_equal(ours, values) for ours,values in pairs))


# ------------------------------------------------ things to read
def make_video(seed=0, **changes):
    draw = np.random.default_rng(seed)
    means = [draw.normal(size=width).astype(np.float32) for width in WIDTHS.values()]
    return Record(f"v{seed:03}", np.sort(draw.choice(3862, 3, replace=False)), *means)._replace(**changes)


def make_clip(seed=0, n_frames=7, **changes):
    draw = np.random.default_rng(seed)
    steps = [draw.integers(0, 256, (n_frames, width), np.uint8) for width in WIDTHS.values()]
    return Record(f"c{seed:03}", np.array([seed % 3862]), *steps)._replace(**changes)


@pytest.fixture(scope="module")
def real():
    "The real frame-level record among the samples."
    if samples_folder() is None: pytest.skip("AVBOOK_SAMPLES is not set: no real record at hand")
    with np.load(samples_folder()/"yt8m"/"frame_example_SjJ3.npz") as sample:
        return Record(str(sample["id"]), sample["labels"], sample["rgb"], sample["audio"])


@pytest.mark.parametrize("id_name", ["id", "video_id"])
def test_the_real_record_comes_back_from_another_writer(real, tmp_path, id_name):
    shard = tmp_path/"train0000.tfrecord"
    shard.write_bytes(plain_frame(other_frame_level(real, id_name))*2)
    for record in read_records(shard, 3862):
        assert record.id == real.id and record.labels.tolist() == real.labels.tolist()
        assert np.array_equal(record.rgb, real.rgb) and np.array_equal(record.audio, real.audio)
        by_numpy = np.hstack([(real.rgb*(4/255) + 4/512 - 2).mean(0), (real.audio*(4/255) + 4/512 - 2).mean(0)])
        np.testing.assert_allclose(to_rows(record)[0], by_numpy, rtol=0, atol=2e-7)
        by_numpy = np.hstack([(real.rgb*(4/255)).std(0), (real.audio*(4/255)).std(0)])
        np.testing.assert_allclose(to_rows(record, "mf_std")[1], by_numpy, rtol=0, atol=2e-7)


def test_the_real_record_written_here_is_read_by_the_other(real, tmp_path):
    write_records(tmp_path/"one.tfrecord", [real])
    content = (tmp_path/"one.tfrecord").read_bytes()
    assert content == plain_frame(content[12:-4])
    assert is_same(real, other_reading(content[12:-4]))


@pytest.mark.parametrize("other", [other_video_level(make_video()), other_frame_level(make_clip())])
def test_bytes_equal_those_of_the_other_writer(other):
    assert sorted(to_payload(parse_record(other))) == sorted(other) and frame_payload(other) == plain_frame(other)


@pytest.mark.skipif(find_spec("tfrecord") is None, reason="the tfrecord package is not installed")
@pytest.mark.parametrize("record", [make_video(), make_clip()], ids=["video", "frame"])
def test_the_tfrecord_package_reads_and_writes_the_same(record, tmp_path):
    from tfrecord.reader import tfrecord_loader
    from tfrecord.writer import TFRecordWriter
    context = {"id": (record.id.encode(), "byte"), "labels": (record.labels.tolist(), "int")}
    lists = None
    if record.rgb.ndim == 1:
        context |= {f"mean_{name}": (getattr(record, name).tolist(), "float") for name in WIDTHS}
    else: lists = {name: ([step.tobytes() for step in getattr(record, name)], "byte") for name in WIDTHS}
    writer = TFRecordWriter(str(tmp_path/"theirs.tfrecord"))
    writer.write(context, lists); writer.close()
    assert is_same(next(read_records(tmp_path/"theirs.tfrecord", 3862)), (record.id, record.labels.tolist(), *record[2:4]))

    write_records(tmp_path/"ours.tfrecord", [record])
    kinds = {name: kind for name,(_,kind) in context.items()}
    steps = lists and dict.fromkeys(WIDTHS, "byte")
    found = next(iter(tfrecord_loader(str(tmp_path/"ours.tfrecord"), None, kinds, sequence_description=steps)))
    context,lists = found if lists else (found, None)
    assert bytes(context["id"]) == record.id.encode() and context["labels"].tolist() == record.labels.tolist()
    for name in WIDTHS:
        theirs = np.stack([np.frombuffer(bytes(step), np.uint8) for step in lists[name]]) if lists else context[f"mean_{name}"]
        assert np.array_equal(theirs, getattr(record, name))


# ------------------------------------------------ other ways to write the same message
def field(number, content): return bytes([number << 3 | 2]) + varint(len(content)) + content
def varint(number): return varint_long(number, 0)
def varint_long(number, n_more):
    "A varint, with `n_more` bytes more than it needs."
    digits = [number & 127]
    while number := number >> 7: digits.append(number & 127)
    digits += [0]*n_more
    return bytes([digit | 128 for digit in digits[:-1]] + digits[-1:])
def entry(name, feature): return field(1, field(1, name.encode()) + field(2, feature))


VIDEO = make_video(5)
ID,LABELS = field(1, field(1, VIDEO.id.encode())),field(3, field(1, b"".join(map(varint, VIDEO.labels.tolist()))))
MEANS = {f"mean_{name}": field(2, field(1, getattr(VIDEO, name).tobytes())) for name in WIDTHS}
PLAIN = {"id": ID, "labels": LABELS, **MEANS}
HALVES = [VIDEO.rgb[:500].tobytes(), VIDEO.rgb[500:].tobytes()]
ONE_BY_ONE = b"".join(b"\x0d" + number.tobytes() for number in VIDEO.rgb)
STILL_THE_SAME = {
    "another order": {name: PLAIN[name] for name in ("mean_audio", "labels", "mean_rgb", "id")},
    "the id of 2017": {"video_id": ID, "labels": LABELS, **MEANS},
    "labels not packed": PLAIN | {"labels": field(3, b"".join(b"\x08" + varint(each) for each in VIDEO.labels.tolist()))},
    "floats not packed": PLAIN | {"mean_rgb": field(2, ONE_BY_ONE)},
    "floats in two packs": PLAIN | {"mean_rgb": field(2, field(1, HALVES[0]) + field(1, HALVES[1]))},
    "floats packed, then not": PLAIN | {"mean_rgb": field(2, field(1, HALVES[0]) + ONE_BY_ONE[500*5:])},
    "a feature in two pieces": PLAIN | {"mean_rgb": field(2, field(1, HALVES[0])) + field(2, field(1, HALVES[1]))},
    "a list that is replaced": PLAIN | {"mean_rgb": field(3, b"\x08\x01") + PLAIN["mean_rgb"]},
    "an unknown field": PLAIN | {"mean_rgb": PLAIN["mean_rgb"] + field(9, b"?"), "labels": LABELS + b"\x50\x01"},
    "an unknown feature": PLAIN | {"title": field(1, field(1, b"\xff\xfe"))},
    "lengths written long": PLAIN | {"mean_rgb": b"\x12" + varint_long(4099 + 1, 2) + b"\x0a" + varint_long(4096, 1)
                                     + VIDEO.rgb.tobytes()},
}


@pytest.mark.parametrize("what", STILL_THE_SAME)
def test_what_protobuf_calls_the_same_is_read_the_same(what):
    payload = field(1, b"".join(entry(name, feature) for name,feature in STILL_THE_SAME[what].items()))
    assert is_same(VIDEO, other_reading(payload)), "the test's own message is wrong"
    record = parse_record(payload, 3862)
    assert is_same(record, other_reading(payload)) and np.array_equal(record.rgb, VIDEO.rgb)


def test_the_outer_message_may_come_in_pieces():
    pieces = [field(1, entry(name, feature)) for name,feature in PLAIN.items()]
    valueless = field(1, field(1, field(1, b"labels")))
    for payload in (b"".join(pieces), b"".join(pieces) + field(1, entry("labels", LABELS)), field(7, b"new") + b"".join(pieces),
                    valueless + b"".join(pieces)):
        assert is_same(parse_record(payload), other_reading(payload)) and parse_record(payload).labels.size == 3
    replaced = b"".join(pieces) + field(1, entry("labels", field(3, field(1, b"\x07"))))
    in_two_values = b"".join(pieces) + field(1, field(1, field(1, b"labels") + field(2, LABELS) + field(2, LABELS)))
    for payload in (replaced, in_two_values): assert is_same(parse_record(payload), other_reading(payload))


# ------------------------------------------------ the known pitfalls, in the order of the format notes
def test_pitfall_either_name_of_the_id(tmp_path):
    write_records(tmp_path/"2017.tfrecord", [VIDEO], "video_id")
    assert [record.id for record in read_records(tmp_path/"2017.tfrecord")] == [VIDEO.id]
    with pytest.raises(RecordError, match="has 0 ids under id or video_id; its features: .'labels'"):
        parse_record(field(1, b"".join(entry(name, PLAIN[name]) for name in ("labels", "mean_rgb"))))


@pytest.mark.parametrize("num_classes,label", [(3862, 3862), (3862, 4715), (4716, 4716), (4716, 4799)])
def test_pitfall_the_class_count_of_another_release(tmp_path, num_classes, label):
    shard = tmp_path/"validate.tfrecord"
    write_records(shard, [VIDEO, VIDEO._replace(labels=np.array([2, label]))])
    ways = [lambda: list(read_records(shard, num_classes)), lambda: list(RecordStream(shard, num_classes)),
            lambda: convert(shard, tmp_path/"map", num_classes, show_progress=False),
            lambda: to_sample(VIDEO._replace(labels=np.array([label])), num_classes)]
    for way in ways:
        with pytest.raises(RecordError, match=f"label {label} is outside a vocabulary of {num_classes} classes; releases"):
            way()


def test_pitfall_the_test_split_has_no_labels(tmp_path, caplog):
    absent = field(1, b"".join(entry(name, PLAIN[name]) for name in ("id", *MEANS)))
    empty = field(1, b"".join(entry(name, feature) for name,feature in (PLAIN | {"labels": field(3, b"")}).items()))
    kindless = field(1, b"".join(entry(name, feature) for name,feature in (PLAIN | {"labels": b""}).items()))
    shard = tmp_path/"test.tfrecord"
    shard.write_bytes(b"".join(map(frame_payload, (absent, empty, kindless))))
    assert [record.labels.size for record in read_records(shard, 3862)] == [0, 0, 0]
    found = convert(shard, tmp_path/"map", 3862, show_progress=False)
    assert found.meta["n_unlabelled"] == 3 and not found.batch([0, 1, 2])["labels"].any()
    assert "3 of 3 records have no labels, as in the test split" in caplog.text


def test_pitfall_own_features_may_lie_outside_the_range():
    "An element of 44.999 has been seen in ported extractors: it saturates, and nothing wraps around."
    assert quantize(np.array([44.999, 2.0001, -2.0001, -1e9])).tolist() == [255, 255, 0, 0]


def test_pitfall_missing_sound_is_missing_at_both_levels(tmp_path):
    silent = [make_clip(audio=np.zeros((7, 128), np.uint8)), make_video(1, audio=np.zeros(128, np.float32)),
              make_clip(2, audio=None), make_video(3, audio=None)]
    write_records(tmp_path/"silent.tfrecord", silent)
    assert [record.audio for record in read_records(tmp_path/"silent.tfrecord")] == [None]*4
    found = convert(tmp_path/"silent.tfrecord", tmp_path/"map", 3862, show_progress=False).batch(range(4))
    assert not found["audio"].any() and not found["has_audio"].any() and found["has_visual"].all()
    deaf_and_blind = make_clip(rgb=np.zeros((7, 1024), np.uint8), audio=None)
    with pytest.raises(RecordError, match="neither picture nor sound"): parse_record(to_payload(deaf_and_blind))


def test_pitfall_mean_average_precision_of_a_small_subset_depends_on_what_is_counted():
    "Classes without a label in the subset are left out, not counted as 0; cutting each video's list changes the rest."
    draw = np.random.default_rng(0)
    scores,labels = draw.random((50, 3862)),np.zeros((50, 3862), bool)
    labels[np.arange(50), draw.integers(30, size=50)] = True
    scores[labels] += 1
    assert map_top20(scores, labels) == 1 and gap(scores, labels) == 1
    scores = draw.random((50, 3862))
    whole,cut = np.nanmean(class_average_precision(scores, labels)),map_top20(scores, labels)
    assert np.isnan(class_average_precision(scores, labels)[30:]).all() and cut < whole


def test_pitfall_labels_are_incomplete():
    "Even whoever knows every label scores low where most of them were never written down."
    draw = np.random.default_rng(0)
    true = draw.random((2000, 40)) < .1
    written = true & (draw.random(true.shape) < .145)
    tally = Tally(40)
    tally.update(true.astype(float), written)
    assert gap(true.astype(float), true) == 1 and gap(true.astype(float), written) < .2
    assert tally.compute()["f1_micro@0.5"] == pytest.approx(2*.145/1.145, abs=.02)


def test_pitfall_a_bare_message_is_no_tfrecord(tmp_path):
    bare = tmp_path/"features.tfrecord"
    bare.write_bytes(other_frame_level(make_clip()))
    with pytest.raises(RecordError, match=r"features.tfrecord: record at byte 0: .* not a TFRecord .*parse_record"):
        list(read_records(bare))
    assert is_same(parse_record(bare.read_bytes()), other_reading(bare.read_bytes()))


@pytest.mark.parametrize("content,said", [
    (b"<?xml version='1.0'?><Error>", "not a TFRecord"), (b"", "is empty"), (b"\x00\x01", "ends 2 bytes into"),
    (b"\x1f\x8b\x08\x00garbage garbage", "gzip stream is damaged")])
def test_pitfall_what_is_no_shard_at_all(tmp_path, content, said):
    (tmp_path/"odd.tfrecord").write_bytes(content)
    with pytest.raises(RecordError, match=f"odd.tfrecord.*{said}"): list(read_records(tmp_path/"odd.tfrecord"))


@pytest.mark.parametrize("is_zipped", [False, True])
def test_pitfall_a_download_that_stopped(tmp_path, is_zipped):
    "Wherever a file is cut: whole records are read, and then it is said, unless the cut lies between two."
    name = f"cut.tfrecord{'.gz' if is_zipped else ''}"
    write_records(tmp_path/name, [make_clip(seed, 1) for seed in range(3)])
    content = (tmp_path/name).read_bytes()
    size = len(frame_payload(to_payload(make_clip(0, 1))))
    for n_bytes in range(1, len(content), 17 if is_zipped else 5):
        (tmp_path/name).write_bytes(content[:n_bytes])
        found = []
        if not is_zipped and n_bytes % size == 0: continue
        with pytest.raises(RecordError, match=rf"{name}: record at byte (0|{size}|{2*size}|{3*size}): .*fetch it again"):
            for record in read_records(tmp_path/name): found.append(record.id)
        assert found == ["c000", "c001", "c002"][:len(found)]


def test_pitfall_one_flipped_bit_anywhere(tmp_path):
    shard = tmp_path/"flipped.tfrecord"
    write_records(shard, [make_clip(0, 1)])
    content = bytearray(shard.read_bytes())
    for bit in range(0, 8*len(content), 7):
        content[bit//8] ^= 1 << bit % 8
        shard.write_bytes(content)
        with pytest.raises(RecordError, match="record at byte 0"): list(read_records(shard))
        content[bit//8] ^= 1 << bit % 8


def test_pitfall_video_longer_than_three_hundred_frames():
    sample = to_sample(make_clip(0, 301), 3862, "frames")
    assert sample["visual"].shape == (300, 1024) and sample["mask"].all()


def test_padding_comes_after_dequantising():
    sample = to_sample(make_clip(0, 4), 3862, "frames", max_frames=6)
    assert torch.equal(sample["visual"][:4], torch.from_numpy(dequantize(make_clip(0, 4).rgb)))
    assert not sample["visual"][4:].any() and sample["mask"].tolist() == [True]*4 + [False]*2


@pytest.mark.parametrize("changes,said", [
    (dict(mean_rgb=field(2, field(1, bytes(4000)))), "mean_rgb has 1000 numbers, not 1024"),
    (dict(mean_rgb=field(2, field(1, np.full(1024, np.nan, "<f4").tobytes()))), "not finite"),
    (dict(labels=field(2, field(1, bytes(4)))), "labels is a float_list, not a int64_list"),
    (dict(labels=field(3, field(1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))), "label -1 is negative"),
    (dict(id=field(1, field(1, b"a") + field(1, b"b"))), "has 2 ids"),
    (dict(id=field(1, field(1, b"\xc3\x28"))), "is no text"),
    (dict(segment_labels=field(3, field(1, b"\x01"))), "labels, starts, ends and scores"),
])
def test_records_that_make_no_sense(changes, said):
    with pytest.raises(RecordError, match=said):
        parse_record(field(1, b"".join(entry(name, feature) for name,feature in (PLAIN | changes).items())), 3862)


# ------------------------------------------------ fuzzing
BASES = [to_payload(each) for each in (
    make_video(), make_video(1, labels=np.array([], np.int64)), make_video(2, audio=None), make_clip(3, 2),
    make_clip(4, 3, segments=(Segment(5, 0, 2, 1.), Segment(9, 0, 2, 0.))), make_clip(5, 1, audio=None),
    make_video(6, labels=np.arange(40)*97))] + [to_payload(make_video(7), "video_id")]


def structure_of(payload):
    "Places in a payload that are not features: names, tags, lengths, labels, ids."
    names = [payload.find(name) for name in (b"id", b"labels", b"mean_rgb", b"mean_audio", b"rgb", b"audio", b"segment")]
    near = {place + step for place in (0, *names) if place >= 0 for step in range(-8, 40)}
    return sorted(place for place in near if 0 <= place < len(payload))


STRUCTURES = list(map(structure_of, BASES))


def mutated(content, places, draw):
    "One to four changes, most of them where they hurt."
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = int(draw.choice(places)) if draw.random() < .8 else int(draw.integers(len(content) + 1))
        at,length = min(at, len(content)),int(draw.integers(1, 12))
        other = draw.integers(256, size=length, dtype=np.uint8).tobytes()
        match draw.integers(7):
            case 0: content[at:at + 1] = bytes([content[at] ^ 1 << draw.integers(8)]) if at < len(content) else b""
            case 1: content[at:at + length] = other
            case 2: del content[at:at + length]
            case 3: content[at:at] = other
            case 4: content[at:at] = content[at:at + length]
            case 5: del content[int(draw.integers(len(content) + 1)) if draw.random() < .2 else -length:]
            case 6: content[at:at + 1] = bytes([draw.choice([0, 1, 8, 10, 13, 18, 26, 127, 128, 255])])
        if not content: content += b"\x0a"
    return bytes(content)


def check_mutated_payload(number, draw):
    "An error, or what TensorFlow's description reads from the same bytes."
    base = number % len(BASES)
    payload = mutated(BASES[base], STRUCTURES[base], draw)
    try: record = parse_record(payload, 3862)
    except RecordError: return False
    assert is_same(record, other_reading(payload)), f"mutation {number} is read wrongly"
    assert all(0 <= label < 3862 for label in record.labels)
    return True


def check_mutated_file(number, draw, shard):
    "An error, or records that were written; a checksum never lets others through."
    chosen = [BASES[index] for index in draw.integers(len(BASES), size=2)]
    content = b"".join(map(frame_payload, chosen))
    edges = [*range(12), *range(len(chosen[0]) + 10, len(chosen[0]) + 30), len(content) - 1]
    shard.write_bytes(mutated(content, edges, draw))
    found = []
    try:
        for _,payload in read_payloads(shard): found.append(payload)
    except RecordError as error: assert str(shard) in str(error)
    assert all(payload in chosen for payload in found), f"mutation {number}: a damaged payload passed its checksum"
    return len(found) == 2


@pytest.mark.filterwarnings("ignore:.*encountered in dot")  # of numbers too large to square, which are refused
def test_mutated_records_give_an_error_or_a_record(tmp_path):
    n_read,slowest = 0,0.
    for number in range(N_MUTATED):
        draw,began = np.random.default_rng([2024, number]),time.perf_counter()
        if number % 4: n_read += check_mutated_payload(number, draw)
        else: n_read += check_mutated_file(number, draw, tmp_path/"mutated.tfrecord")
        slowest = max(slowest, time.perf_counter() - began)
    print(f"{N_MUTATED} mutated records: {n_read} still read, {N_MUTATED - n_read} refused; slowest {slowest:.3f} s")
    assert slowest < 5 and .02*N_MUTATED < n_read < .9*N_MUTATED  # of the harmless kind and the other, both


# ------------------------------------------------ many readers
@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        write_records(folder/f"train{shard:02}.tfrecord", [make_clip(10*shard + n, 2) for n in range(10)])
    return folder


def ids_of(stream, **given): return [sample["id"] for sample in DataLoader(stream, None, **given)]


@pytest.mark.parametrize("n_ranks,n_workers", [(1, 0), (1, 2), (2, 2), (3, 2), (5, 1)])
def test_every_record_once_over_ranks_and_workers(shards, n_ranks, n_workers):
    found = [ids_of(RecordStream(shards, 3862, buffer_size=4, rank=rank, n_ranks=n_ranks), num_workers=n_workers)
             for rank in range(n_ranks)]
    assert sorted(sum(found, [])) == [f"c{n:03}" for n in range(30)]


def test_workers_that_live_on_see_the_next_epoch(shards):
    stream = RecordStream(shards, 3862, buffer_size=8, seed=3)
    loader = DataLoader(stream, None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        epochs.append([sample["id"] for sample in loader])
    assert epochs[0] == epochs[2] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


# ------------------------------------------------ conversions that are killed, run twice, or tampered with
CONVERT = """
import os, signal, sys
from avbook.classification import data
append,n_before = data._append_part,int(sys.argv[3])
def append_or_die(work, number, shard, plan):
    if number == n_before:
        with open(work/"features.f16", "ab") as file: file.write(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    return append(work, number, shard, plan)
data._append_part = append_or_die
data.convert(sys.argv[1], sys.argv[2], 3862, show_progress=False)
"""


def test_a_killed_conversion_goes_on(shards, tmp_path):
    straight = convert(shards, tmp_path/"straight", 3862, show_progress=False)
    for n_before in (1, 1, 2):
        killed = subprocess.run([sys.executable, "-c", CONVERT, shards, tmp_path/"killed", str(n_before)])
        assert killed.returncode == -signal.SIGKILL and not (tmp_path/"killed").exists()
    resumed = convert(shards, tmp_path/"killed", 3862, show_progress=False)
    for name in ("features.f16", "meta.json"):
        assert (resumed.folder/name).read_bytes() == (straight.folder/name).read_bytes()
    assert verify_map(resumed.folder) == [] and sorted(resumed.ids.astype(str)) == [f"c{n:03}" for n in range(30)]


def test_two_conversions_at_once_make_one(shards, tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", CONVERT, shards, tmp_path/"one", "-1"]) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert len(RecordMap(tmp_path/"one")) == 30 and verify_map(tmp_path/"one") == []


def test_a_conversion_of_something_else_is_refused(shards, tmp_path):
    convert(shards, tmp_path/"map", 3862, show_progress=False)
    write_records(tmp_path/"other.tfrecord", [make_clip()])
    with pytest.raises(ValueError, match="was made with other shards"): convert(tmp_path/"other.tfrecord", tmp_path/"map", 3862)
    subprocess.run([sys.executable, "-c", CONVERT, shards, tmp_path/"new", "1"])
    with pytest.raises(ValueError, match="new.unfinished was begun with other shards"): convert(shards, tmp_path/"new", 4716)


def test_a_map_that_was_cut_or_changed_is_noticed(shards, tmp_path):
    folder = convert(shards, tmp_path/"map", 3862, show_progress=False).folder
    labels = (folder/"labels.npz").read_bytes()
    (folder/"labels.npz").write_bytes(labels + b" ")
    assert "labels.npz fails its checksum" in verify_map(folder)[0]
    (folder/"labels.npz").write_bytes(labels)
    with open(folder/"features.f16", "ab") as file: file.truncate(1000)
    with pytest.raises(ValueError, match="features.f16 has 1000 bytes, not 69120: convert again"): RecordMap(folder)


def test_frame_level_means_and_deviations_reach_the_map(shards, tmp_path):
    found = convert(shards, tmp_path/"map", 3862, rows="mf_std", show_progress=False)
    records = [record for path in sorted(shards.iterdir()) for record in read_records(path)]
    for index,record in enumerate(records):
        np.testing.assert_allclose(found[index]["visual"], to_rows(record, "mf_std")[:,:1024], atol=1e-3)
    assert found.batch([3])["visual"].shape == (1, 2, 1024) and found.batch([3])["mask"].tolist() == [[True, True]]


def test_a_map_goes_through_a_loader_with_workers(shards, tmp_path):
    found = convert(shards, tmp_path/"map", 3862, show_progress=False)
    loader = DataLoader(found, 8, shuffle=True, num_workers=2, multiprocessing_context="spawn")
    assert sorted(each for batch in loader for each in batch["id"]) == [f"c{n:03}" for n in range(30)]
    batches = MapBatches(found, 8)
    assert len({each for batch in batches for each in batch["id"]}) == 24
