"""When should one measure? Measurement times that make a parameter's error smallest.

A decay A exp(-k t) + C is to be measured at 12 moments between 0 and 10. The standard
error of k follows from the covariance of a fit, and `jax.grad` tells how it changes
with every moment: a descent of a few lines finds the best ones (a c-optimal design).
Prints the error before and after, and saves `design.png`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit

jax.config.update("jax_enable_x64", True)

TRUTH = jnp.array([2.0, 0.7, 0.5])  # what is expected of the experiment
NOISE, POINTS, LATEST = 0.05, 12, 10.0


def decay(x, t):
    return x[0] * jnp.exp(-x[1] * t) + x[2]


def error_of_rate(t):
    """The standard error of k that measurements at these moments will give."""
    fit = jaxfit.solve(
        lambda x, data: (decay(x, data[0]) - data[1]) / NOISE,
        TRUTH,
        (t, decay(TRUTH, t)),
    )
    return fit.stderr(absolute=True)[1]


def best_times(t, steps=600):
    """Descend the logarithm of the error; the moments stay within the experiment."""
    optimizer = optax.adam(0.05)
    slope = jax.value_and_grad(lambda t: jnp.log(error_of_rate(t)))

    def step(carry, _):
        t, memory = carry
        value, gradient = slope(t)
        updates, memory = optimizer.update(gradient, memory)
        return (jnp.clip(t + updates, 0, LATEST), memory), jnp.exp(value)

    (t, _), errors = jax.lax.scan(step, (t, optimizer.init(t)), length=steps)
    return jnp.sort(t), errors


def main() -> None:
    uniform = jnp.linspace(0, LATEST, POINTS)
    best, errors = jax.jit(best_times)(uniform)
    before, after = errors[0], error_of_rate(best)
    print(f"standard error of k: {before:.4f} uniform, {after:.4f} best")
    print(f"as good as {float(before / after) ** 2:.1f} times as many measurements")
    print("moments:", np.round(best, 2))

    rng = np.random.default_rng(0)
    rates = []
    for t in (uniform, best):  # does it hold in simulated experiments?
        y = decay(TRUTH, t) + NOISE * rng.normal(size=(5000, POINTS))
        fits = jaxfit.solve_batch(
            lambda x, y, t=t: decay(x, t) - y, TRUTH, y, in_axes=(None, 0)
        )
        rates.append(np.asarray(fits.x[:, 1]))
        print(f"scatter of k in 5000 experiments: {np.std(rates[-1]):.4f}")
    draw(uniform, best, errors, rates)


def draw(uniform, best, errors, rates) -> None:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 3.8), layout="constrained"
    )
    t = np.linspace(0, LATEST, 300)
    left.plot(t, decay(TRUTH, t), "k", lw=1)
    for moments, name, color, lift in (
        (uniform, "uniform", "tab:gray", 0.12),
        (best, "best", "tab:red", -0.12),
    ):
        values = decay(TRUTH, moments) + lift
        left.plot(moments, values, "o", color=color, label=name, alpha=0.7)
    left.set(xlabel="t", ylabel="signal", title="When to measure")
    left.legend()
    middle.plot(errors)
    middle.set(xlabel="step", ylabel="standard error of k", title="Descent")
    bins = np.linspace(0.3, 1.2, 60)
    for one, name, color in zip(
        rates, ("uniform", "best"), ("tab:gray", "tab:red"), strict=True
    ):
        right.hist(one, bins, color=color, alpha=0.6, label=name)
    right.axvline(TRUTH[1], color="k", lw=1)
    right.set(xlabel="fitted k", title="5000 simulated experiments")
    right.legend()
    figure.savefig("design.png", dpi=120)
    print("saved design.png")


if __name__ == "__main__":
    main()
