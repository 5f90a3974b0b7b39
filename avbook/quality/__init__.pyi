# Made from the table in avbook.quality, for editors and type checkers.

from . import batch as batch
from . import losses as losses
from . import metrics as metrics
from . import model as model
from . import paper as paper
from . import predict as predict
from . import reference as reference
from . import tables as tables
from .batch import score_files as score_files
from .batch import write_frames as write_frames
from .batch import write_verdicts as write_verdicts
from .losses import quality_loss as quality_loss
from .metrics import agreement as agreement
from .metrics import challenge_score as challenge_score
from .metrics import krocc as krocc
from .metrics import pair_accuracy as pair_accuracy
from .metrics import plcc as plcc
from .metrics import rmse as rmse
from .metrics import srocc as srocc
from .model import Calibration as Calibration
from .model import Design as Design
from .model import SlowFastVQA as SlowFastVQA
from .model import fit_calibration as fit_calibration
from .model import load_vqa as load_vqa
from .model import save_vqa as save_vqa
from .paper import printed as printed
from .paper import published as published
from .paper import table_jobs as table_jobs
from .predict import Comparison as Comparison
from .predict import Verdict as Verdict
from .predict import compare_videos as compare_videos
from .predict import label_of as label_of
from .predict import open_network as open_network
from .predict import score_video as score_video
from .predict import to_json as to_json
from .predict import to_line as to_line
from .reference import align as align
from .reference import full_reference as full_reference
from .tables import Manifest as Manifest
from .tables import read_labels as read_labels
from .tables import read_manifest as read_manifest
from .tables import read_pairs as read_pairs

HOMES: dict[str, tuple[str, ...]]
