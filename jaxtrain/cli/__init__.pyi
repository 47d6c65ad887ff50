from .config import Options as Options
from .config import StrategyName as StrategyName
from .config import check as check
from .failures import guarded as guarded
from .options import NetworkOptions as NetworkOptions
from .options import TrainingOptions as TrainingOptions
from .recipe import main as main
