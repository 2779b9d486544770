"""Learn an instrument's response through thousands of fits.

Fluorescence decays are seen through a detector whose response is unknown, the same for
all, and not a delta. Every curve has an amplitude, a lifetime and an offset of its own,
which a fit finds once the response is given. The response is learned around the fits:
every other bin of each curve is fitted, the bins between are predicted, and the
gradient of the prediction's error goes through all fits at once to the response.
Prints the bias of the lifetimes before and after, and saves `bilevel.png`.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit

jax.config.update("jax_enable_x64", True)

CURVES, BINS, WIDTH = 1000, 64, 12
STEPS = 250
TIMES = jnp.arange(BINS) * 0.1  # ns
LAG = np.arange(BINS)[:, None] - np.arange(BINS)
RESPONSE = np.exp(-(((np.arange(WIDTH) - 4.0) / 1.6) ** 2))  # what is to be found
RESPONSE[4:] += 0.25 * np.exp(-(np.arange(WIDTH - 4) / 3.0))
RESPONSE /= RESPONSE.sum()
NOISE = 5.0


def seen(x, response):
    """A decay as the detector shows it."""
    amplitude, lifetime, offset = x
    decay = amplitude * jnp.exp(-TIMES / lifetime)
    smear = jnp.where((LAG >= 0) & (LAG < WIDTH), response[LAG % WIDTH], 0)
    return smear @ decay + offset


def simulate(rng):
    truth = rng.uniform([500, 0.5, 5], [1500, 2.0, 20], (CURVES, 3))
    clean = jax.vmap(lambda x: seen(x, jnp.asarray(RESPONSE)))(truth)
    return truth, np.asarray(clean) + NOISE * rng.normal(size=clean.shape)


def fits(logits, curves):
    """Every curve with this response, from its even bins."""
    response = jax.nn.softmax(logits)
    even = jnp.arange(BINS) % 2 == 0

    def residual(x, y):
        return jnp.where(even, seen(x, response) - y, 0) / NOISE

    start = jnp.array([1000.0, 1.0, 10.0])
    bounds = ([0.0, 0.05, -100.0], [1e5, 20.0, 200.0])
    return jaxfit.solve_batch(
        residual, start, curves, in_axes=(None, 0), bounds=bounds, keep=lambda s: s.x
    )


def prediction_error(logits, curves):
    """The mean square of the residuals of the bins between."""
    x = fits(logits, curves)
    response = jax.nn.softmax(logits)
    predicted = jax.vmap(lambda x: seen(x, response))(x)
    return jnp.mean(((predicted - curves) / NOISE)[:, 1::2] ** 2)


def learn(curves):
    optimizer = optax.adam(0.15)
    logits = -0.3 * jnp.arange(WIDTH, dtype=float)  # a guess: it decays
    memory = optimizer.init(logits)

    @jax.jit
    def step(logits, memory):
        error, slope = jax.value_and_grad(prediction_error)(logits, curves)
        updates, memory = optimizer.update(slope, memory)
        return logits + updates, memory, error

    errors, start = [], logits
    begin = time.perf_counter()
    for _ in range(STEPS):
        logits, memory, error = step(logits, memory)
        errors.append(float(error))
    seconds = time.perf_counter() - begin
    print(f"{STEPS} steps through {CURVES} fits each in {seconds:.1f} s, compiled once")
    return start, logits, errors


def main() -> None:
    truth, curves = simulate(np.random.default_rng(0))
    start, logits, errors = learn(curves)
    print(f"error of prediction: {errors[0]:.1f} at first, {errors[-1]:.3f} at last")
    lifetimes = []
    for name, one in (("guessed", start), ("learned", logits)):
        x = jax.jit(fits)(one, curves)
        lifetimes.append(np.asarray(x[:, 1]))
        bias = np.mean(lifetimes[-1] - truth[:, 1])
        print(f"mean error of the lifetimes, response {name}: {1e3 * bias:+.1f} ps")
    draw(truth, lifetimes, start, logits, errors)


def draw(truth, lifetimes, start, logits, errors) -> None:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 3.8), layout="constrained"
    )
    bins = np.arange(WIDTH) * 0.1
    left.plot(bins, RESPONSE, "k", lw=3, alpha=0.3, label="true")
    left.plot(bins, jax.nn.softmax(start), "--", color="tab:gray", label="guessed")
    left.plot(bins, jax.nn.softmax(logits), "o-", color="tab:red", label="learned")
    left.set(xlabel="ns", title="Response")
    left.legend()
    middle.semilogy(errors)
    middle.axhline(1, color="k", lw=1)
    middle.set(xlabel="step", title="Error of prediction")
    for values, name, color in zip(
        lifetimes, ("guessed", "learned"), ("tab:gray", "tab:red"), strict=True
    ):
        right.plot(truth[:, 1], values, ".", ms=3, color=color, label=name)
    right.plot([0.5, 2], [0.5, 2], "k", lw=1)
    right.set(xlabel="true lifetime, ns", ylabel="fitted", title=f"{CURVES} curves")
    right.legend()
    figure.savefig("bilevel.png", dpi=120)
    print("saved bilevel.png")


if __name__ == "__main__":
    main()
