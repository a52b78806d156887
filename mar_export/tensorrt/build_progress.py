"""The progress of a build: what TensorRT reports about nested phases, as one share of all engines."""

from __future__ import annotations

from runtime.progress import Progress

_PARTS = 1000  # of one engine


class BuildProgress(Progress):
    """Shows how much of the builds of several engines is done.

    Args:
        engines: The number of engines to build.
    """

    def __init__(self, engines: int) -> None:
        super().__init__(_PARTS * engines, "building engines")
        self._shown_parts = 0  # of the current engine
        self._phases: dict[str, tuple[int, int]] = {}  # the current phases, outermost first: steps done, and steps

    def phase(self, name: str, done: int, total: int) -> None:
        """Show that `done` of the `total` steps of a phase of the current engine are completed."""
        if name in self._phases:
            while next(reversed(self._phases)) != name:
                self._phases.popitem()
        else:  # a phase that is completed has no phases inside
            while self._phases and _is_complete(*next(reversed(self._phases.values()))):
                self._phases.popitem()
        self._phases[name] = done, total
        share, unit = 0.0, 1.0
        for steps_done, steps in self._phases.values():
            share, unit = share + unit * steps_done / max(1, steps), unit / max(1, steps)
        self._show_parts(min(share, 1.0), name)

    def engine_done(self) -> None:
        """Show that the current engine is built; the phases that follow are of the next one."""
        self._show_parts(1.0, "")
        self._shown_parts, self._phases = 0, {}

    def _show_parts(self, share: float, phase: str) -> None:
        parts = max(self._shown_parts, int(_PARTS * share))
        self.update(parts - self._shown_parts, phase)
        self._shown_parts = parts


def _is_complete(done: int, total: int) -> bool:
    return done >= total
