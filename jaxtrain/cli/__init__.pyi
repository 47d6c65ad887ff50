from .config import Options as Options
from .config import StrategyName as StrategyName
from .failures import guarded as guarded
from .options import NetworkOptions as NetworkOptions
from .options import TrainingOptions as TrainingOptions
from .options import check_options as check_options
from .recipe import main as main
