"""A T-maze: the next input depends on the network's action (Bakker 2002).

A cue at the start of a corridor tells which way to turn at its end. The agent must walk there, and sees the cue in the
first cell only. Actions are drawn from the network's output. The loss is that of REINFORCE with the reward of each time
step, so an online rule's trace credits the turn with what was remembered.

python recipes/tmaze.py --strategy drtrl --seeds 5
python recipes/tmaze.py --no-memory --seeds 5            # the control: no recurrence, so turns are guesses
python recipes/tmaze.py --strategy bptt
"""

import sys
from dataclasses import dataclass

from jaxtrain import cli
from jaxtrain.cli import NetworkOptions, TrainingOptions, check_options
from jaxtrain.errors import ConfigError
from jaxtrain.nn.cells import CellName

FORWARD, LEFT, RIGHT = range(3)


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """A T-maze: remember a cue along a corridor, then turn left or right."""

    corridor: int = 10
    """cells from the cue to the junction"""
    time: int = 30
    """time steps of an episode; the agent waits after its turn"""
    memory: bool = True
    """whether the network has a recurrent layer"""
    cell: CellName = "mini_gru"
    """type of the recurrent layer"""
    hidden: int = 32
    """units per layer"""
    max_steps: int = 2000
    """train steps, one batch of episodes each"""

    def __post_init__(self):
        check_options(self, counts=("corridor", "time"))
        if self.time < self.corridor + 2:
            raise ConfigError(
                f"--time {self.time}: expected at least {self.corridor + 2}, for a corridor of {self.corridor} cells "
                "and a turn, and more while the way is learned"
            )


CHANCE = {"correct": 0.5}


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import brainstate
    import braintrace
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxtrain as jt

    class Agent(brainstate.nn.Module):
        """A maze and a network in it; one call is one action. The maze is short-term state, so it is compiled, too."""

        def __init__(self):
            super().__init__()
            if config.memory:
                self.network = config.network(5, 3, config.corridor)
            else:
                self.network = brainstate.nn.Sequential(
                    braintrace.nn.Linear(5, config.hidden), brainstate.nn.Tanh(), braintrace.nn.Linear(config.hidden, 3)
                )

        def init_state(self, batch_size=None, **_):
            shape = () if batch_size is None else (batch_size,)
            self.position = brainstate.ShortTermState(jnp.zeros(shape, jnp.float32))
            self.over = brainstate.ShortTermState(jnp.zeros(shape, jnp.float32))

        def update(self, x):
            cue, noise = x[..., 0], x[..., 1:]
            position, over = self.position.value, self.over.value
            at = lambda cell: (position == cell) * (1 - over)  # noqa: E731
            start, junction = at(0), at(config.corridor)
            between = (1 - over) * (1 - start) * (1 - junction)
            logits = self.network(jnp.stack([start * cue, start * (1 - cue), between, junction, over], -1))
            # Drawn in training (Gumbel noise comes with the data), the most likely action in a validation.
            explored = logits + noise if brainstate.environ.get("fit") else logits
            action = jax.lax.stop_gradient(explored).argmax(-1)
            moved = (1 - over) * (1 - junction) * (action == FORWARD)
            turned = junction * (action != FORWARD)
            correct = turned * ((action == LEFT) == (cue == 1))
            bumped = (1 - over) * (1 - moved) * (1 - turned)
            self.position.value, self.over.value = position + moved, jnp.maximum(over, turned)
            return {
                "logits": logits, "action": action, "active": 1 - over, "turned": turned, "correct": correct,
                "reward": 2 * correct - turned - 0.1 * bumped,
            }  # fmt: skip

    class TMaze(jt.Module):
        def build(self):
            return Agent()

        def learning_step(self, forward, x, y):
            seen = forward(x)
            log_policy = jax.nn.log_softmax(seen["logits"])
            chosen = jnp.take_along_axis(log_policy, seen["action"][:, None], -1)[:, 0]
            entropy = -(jnp.exp(log_policy) * log_policy).sum(-1)
            loss = -seen["active"] * (seen["reward"] * chosen + 0.01 * entropy)
            # An episode counts once: those without a turn are neither right nor in the weight.
            return loss, {"correct": (seen["correct"], seen["turned"]), "turns": config.time * seen["turned"]}

        def configure_optimizer(self):
            return config.optimizer(config.corridor)

        def group(self, name):
            return config.group(name)

    class Episodes:
        """The cue of each episode, and the noise with which actions are drawn. Each batch depends only on the step."""

        def __init__(self, split: int, length: int | None = None):
            self.split, self.length = split, length

        def batch(self, step: int):
            rng = np.random.default_rng((config.seed, self.split, step))
            cue = rng.integers(0, 2, (1, config.batch_size, 1)).repeat(config.time, 0)
            noise = rng.gumbel(size=(config.time, config.batch_size, 3))
            x = np.concatenate([cue, noise], -1).astype(np.float32)
            return x, np.zeros((config.time, config.batch_size), np.float32)

        def __len__(self):
            if self.length is None:
                raise TypeError("endless")
            return self.length

    callbacks = config.callbacks()
    fit = jt.Fit(config.make_strategy(), callbacks=callbacks, **config.fit_options())
    return fit, TMaze(), jt.DataModule(Episodes(0), Episodes(1, 4), batch_first=False)


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
