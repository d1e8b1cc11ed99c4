"""Images and labels as tensors: where they come from, how they are split, and how they are varied."""

from understudy.data.data import Data as Data
from understudy.data.split import AnySplit as AnySplit
from understudy.data.split import Split as Split
from understudy.data.split import StreamedSplit as StreamedSplit
from understudy.data.views import Epoch as Epoch
from understudy.data.views import Views as Views
