from .ending import run as run
