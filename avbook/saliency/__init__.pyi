# Made from the table in avbook.saliency, for editors and type checkers.

from . import evaluation as evaluation
from . import losses as losses
from . import metrics as metrics
from . import model as model
from . import paper as paper
from . import predict as predict
from . import quick as quick
from . import truth as truth
from .evaluation import evaluate as evaluate
from .losses import saliency_loss as saliency_loss
from .metrics import Protocol as Protocol
from .metrics import auc_judd as auc_judd
from .metrics import cc as cc
from .metrics import kl_divergence as kl_divergence
from .metrics import nss as nss
from .metrics import score as score
from .metrics import sim as sim
from .model import AVRSP as AVRSP
from .model import Design as Design
from .model import load_avrsp as load_avrsp
from .model import load_visual as load_visual
from .model import save_avrsp as save_avrsp
from .model import table_jobs as table_jobs
from .paper import printed as printed
from .paper import published as published
from .predict import open_network as open_network
from .predict import predict_files as predict_files
from .predict import predict_video as predict_video
from .predict import read_prediction as read_prediction
from .predict import stream_video as stream_video
from .predict import write_overlay as write_overlay
from .predict import write_prediction as write_prediction
from .quick import quicken as quicken
from .truth import open_split as open_split
from .truth import render_clip as render_clip
from .truth import render_split as render_split

HOMES: dict[str, tuple[str, ...]]
