from .options import NetworkOptions as NetworkOptions
from .options import TrainingOptions as TrainingOptions
from .recipe import Options as Options
from .recipe import StrategyName as StrategyName
from .recipe import check as check
from .recipe import guarded as guarded
from .recipe import main as main
