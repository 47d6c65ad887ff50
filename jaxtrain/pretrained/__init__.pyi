from .nir_export import save_nir as save_nir
from .partial import Loaded as Loaded
from .partial import load as load
from .tensors import save_safetensors as save_safetensors
