from .processes import run as run
