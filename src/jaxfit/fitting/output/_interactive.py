"""A fit by hand, in a notebook: sliders for the starts, and the fit that follows.

What moves is a start, and what is shown is what the fit makes of it; so one sees from
where the right minimum is found. It is made of ipywidgets, the extra `notebook`.
"""

import dataclasses
import io
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxfit.fitting._fitted import Parameter
from jaxfit.fitting._problem import starts_about
from jaxfit.fitting._run import fit_numbers
from jaxfit.fitting.output import _plot, _report

STEPS = 400  # of a slider


class Panel:
    """Sliders, a picture, and a report; a notebook shows it as it is.

    Attributes:
        fit: the latest fit.
        sliders: those of the varied parameters, by name: widgets of ipywidgets.
        widget: all of it, as one widget.
    """

    def __init__(self, fit: Any, xscale: str):
        if fit.together is not None:
            raise ValueError(
                "This fit is one of many that share parameters, which cannot move for "
                "it alone. Fit its data by itself for a panel."
            )
        widgets = _ipywidgets()
        _plot.pyplot()  # or an error that says how to get it
        self.fit, self._xscale, self._is_moving = fit, xscale, False
        self._one_at_a_time = threading.Lock()  # notebooks call from several threads
        first = {name: _start(fit[name]) for name in fit.varied}
        self.sliders = {name: _slider(widgets, fit[name]) for name in fit.varied}
        for slider in self.sliders.values():
            slider.observe(lambda _: self._follow(), names="value")
        take = widgets.Button(description="Start at the fit")
        take.on_click(lambda _: self.move({n: self.fit[n].value for n in first}))
        back = widgets.Button(description="Back")
        back.on_click(lambda _: self.move(first))
        self._picture = widgets.Image(
            format="png", layout={"align_self": "flex-start", "max_width": "60%"}
        )
        self._words = widgets.HTML()
        left = [*self.sliders.values(), widgets.HBox([take, back]), self._words]
        self.widget = widgets.HBox([widgets.VBox(left), self._picture])
        self._follow()

    @property
    def starts(self) -> dict[str, float]:
        """Where the latest fit began, by name."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def move(self, starts: Mapping[str, float]) -> None:
        """Move the sliders of these names, and fit once.

        Raises:
            ValueError: for a name that has no slider, or a start outside its bounds.
        """
        moved = {name: float(value) for name, value in starts.items()}
        for name, value in moved.items():
            self._check(name, value)
        self._is_moving = True
        try:
            for name, value in moved.items():
                slider = self.sliders[name]
                slider.max, slider.min = max(slider.max, value), min(slider.min, value)
                slider.value = value
        finally:
            self._is_moving = False
        self._follow()

    def _check(self, name: str, value: float) -> None:
        if name not in self.sliders:
            known = ", ".join(self.sliders)
            raise ValueError(f"There is no slider for {name!r}; there are {known}.")
        bounds = self.fit[name].lower, self.fit[name].upper
        if not bounds[0] <= value <= bounds[1]:
            raise ValueError(f"{name} = {value:g} is outside its bounds {bounds}.")

    def _follow(self) -> None:
        """Fit from where the sliders are, and show what came of it."""
        if not self._is_moving:
            with self._one_at_a_time:
                self._show()

    def _show(self) -> None:
        from matplotlib.figure import Figure  # one that pyplot does not show

        self.fit = _anew(self.fit, self.starts)
        figure = _plot.fit(
            self.fit,
            level=0.95,
            components=True,
            residuals=True,
            xscale=self._xscale,
            xlabel=None,
            ylabel="y",
            title=None,
            new_figure=Figure,
        )
        if not _plot.is_image(self.fit):
            start = _at_start(self.fit, self.starts)
            _plot.draw_start(figure, start, self._xscale)
        self._picture.value = _png(figure)
        self._words.value = _report.html(self.fit)

    def _repr_mimebundle_(self, *given: Any, **settings: Any) -> Any:
        return self.widget._repr_mimebundle_(*given, **settings)


def _ipywidgets() -> Any:
    """ipywidgets, or an error that says how to get it."""
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(
            "A panel needs ipywidgets, which is not installed: "
            'pip install "jaxfit-lsq[notebook]", or pip install ipywidgets matplotlib'
        ) from error
    return ipywidgets


def _start(parameter: Parameter) -> float:
    """Where its fit began; where it ended if that is not known."""
    start = parameter.start
    return start if math.isfinite(start) else parameter.value


def _slider(widgets: Any, parameter: Parameter) -> Any:
    """A slider about start and result, within bounds."""
    start, value = _start(parameter), parameter.value
    sizes = [abs(start), abs(value), abs(value - start)]
    if math.isfinite(parameter.stderr):
        sizes.append(5 * parameter.stderr)
    reach = max(size for size in [*sizes, 0.0] if math.isfinite(size)) or 1.0
    ends = [start, value] if math.isfinite(value) else [start]
    low = max(min(ends) - reach, parameter.lower)
    high = min(max(ends) + reach, parameter.upper)
    return widgets.FloatSlider(
        value=start,
        min=low,
        max=high,
        step=(high - low) / STEPS,
        description=parameter.name,
        readout_format=".4g",
    )


def _anew(fit: Any, starts: Mapping[str, float]) -> Any:
    """The same fit from other starts."""
    inner = {n: np.asarray(v) for n, v in starts_about(fit.problem, starts).items()}
    data_set = fit.observed.data_set._replace(starts=inner)
    numbers = fit_numbers(fit.problem, data_set, fit.method)
    return dataclasses.replace(fit, numbers=numbers, minima=None, remarks=())


def _at_start(fit: Any, starts: Mapping[str, float]) -> Any:
    """The fit with its start in the place of its result, to draw the curve there."""
    varied = fit.varied
    inner = starts_about(fit.problem, starts)
    numbers = fit.numbers._replace(x=np.array([starts[name] for name in varied]))
    if numbers.solver_x is not None:
        shifted = np.array([float(inner[name]) for name in varied])
        numbers = numbers._replace(solver_x=shifted)
    return dataclasses.replace(fit, numbers=numbers)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
