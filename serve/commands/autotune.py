"""`python -m serve autotune`: measures for some seconds which thread settings suit this machine, and what they gain.

It times a single image on 1, 2, 4, … intra-op threads, and counts images per second from 1, 2, 4, … streams of one
thread each. All settings are measured in turn in each round, so that noise affects them alike.
"""

import os
import re
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serve.config.regular_file import read_text
from serve.config.settings import SETTINGS_FILE, argument_parser, load_config
from serve.config.settings_file import MAX_BYTES
from serve.errors import ConfigError
from serve.imaging.normalise import Batch
from serve.model.engine_choice import choose_engine
from serve.model.engines import EngineOptions
from serve.model.files import model_folders
from serve.model.session import Model, load_model
from serve.printable import printable, progress_bar

_ROUNDS: Final = 5
_SINGLE_IMAGE_RUNS: Final = 12
_LOAD_SECONDS: Final = 0.5
# A smaller gain over the default could be noise.
_MIN_GAIN: Final = 0.05


@dataclass(frozen=True)
class Choice:
    """One setting's measured values.

    Attributes:
        figures: milliseconds or images per second, by value of the setting.
    """

    setting: str
    unit: str
    figures: dict[int, float]
    default: int
    chosen: int

    @property
    def gain(self) -> float:
        """How much better the chosen value is than the default: a ratio of at least 1."""
        ratio = self.figures[self.default] / self.figures[self.chosen]
        return ratio if self.unit == "ms" else 1 / ratio


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command.

    Returns:
        The exit status, 0.

    Raises:
        StartError: a setting, the model or the settings file is unusable.
    """
    parser = argument_parser("autotune", "Measure and print the thread settings that suit this machine.", "[--write]")
    parser.add_argument("--write", action="store_true", help="also save them in the settings file")
    flags = parser.parse_args(arguments)
    named = flags.config or environment.get("SERVE_CONFIG")
    target = Path(named) if named else SETTINGS_FILE
    if flags.write and not target:
        raise ConfigError("--write needs --config FILE, the settings file to save in; it may be a new one")
    if flags.write and target and not target.exists():
        save(target, {})  # reading the settings needs it, and if it cannot be written, measuring is in vain
    config = load_config(arguments, environment, parser)
    folders = model_folders(config.models, config.model)
    chosen = choose_engine(config.engine, config.model, config.model_variant, folders)
    budget = config.thread_plan.budget
    engine = f"engine {chosen.engine} ({chosen.reason})"
    print(printable(f"{chosen.path.name} on {budget.count} CPUs ({budget.reason}), {engine}"), flush=True)
    progress = _show_progress if sys.stderr.isatty() else lambda _: None
    choices = measure(chosen.path, budget.count, chosen.engine, progress)
    print("\n".join(report(choices)))
    if flags.write and target:
        save(target, {choice.setting: None if choice.gain == 1 else choice.chosen for choice in choices})
        how = f" if started with --config {shlex.quote(named)}" if named else ""
        print(printable(f"Saved in {target}; the server reads it{how}."))
    return 0


def measure(path: Path, cpus: int, engine: str, progress: Callable[[float], None]) -> list[Choice]:
    """Measures and chooses each setting.

    Args:
        cpus: the number of CPUs that may be used.
        engine: the engine that runs the model.
        progress: called with the share done, 0 to 1.
    """
    counts = [2**power for power in range(cpus.bit_length()) if 2**power < cpus] + [cpus]
    models = {count: load_model(path, EngineOptions(count, count), engine) for count in counts}
    image = models[cpus].blank
    alone: dict[int, list[float]] = {count: [] for count in counts}
    loaded: dict[int, list[float]] = {count: [] for count in counts}
    steps = 0
    for _ in range(_ROUNDS):
        for count, model in models.items():
            alone[count].append(_single_image_ms(model, image))
            loaded[count].append(_images_per_second(model, image, count))
            steps += 1
            progress(steps / (_ROUNDS * len(counts)))
    return [
        _choose("intra_op_threads", "ms", {count: statistics.median(figures) for count, figures in alone.items()}),
        _choose("streams", "images/s", {count: statistics.median(figures) for count, figures in loaded.items()}),
    ]


def report(choices: Sequence[Choice]) -> list[str]:
    """Returns the lines to print: every figure, then each setting's chosen value and gain."""
    lines = []
    for choice in choices:
        what = "a single image" if choice.unit == "ms" else "under load"
        figures = ", ".join(f"{value}: {figure:.1f} {choice.unit}" for value, figure in choice.figures.items())
        lines.append(f"{choice.setting:<17} {what:<15} {figures}")
    lines.append("")
    for choice in choices:
        gain = "the default" if choice.chosen == choice.default else f"{choice.gain:.2f} times as fast as the default"
        lines.append(f"{choice.setting} = {choice.chosen}  # {gain}")
    return lines


def save(path: Path, settings: dict[str, int | None]) -> None:
    """Writes the settings into a TOML file and leaves everything else in it unchanged.

    Args:
        settings: by name; None removes one, so that its default follows the CPUs available.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    try:
        lines = [line for line in _read_lines(path) if not re.match(rf"\s*\"?({'|'.join(settings)})\"?\s*=", line)]
        lines += [f"{setting} = {value}" for setting, value in settings.items() if value is not None]
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"settings file {path}: {(error.strerror or 'cannot be written').lower()}") from error


def _read_lines(path: Path) -> list[str]:
    """Reads the file's lines, none if it does not exist; raises `OSError` for a device, which must not be replaced."""
    try:
        return read_text(path, MAX_BYTES).splitlines()
    except FileNotFoundError:
        return []


def _choose(setting: str, unit: str, figures: dict[int, float]) -> Choice:
    """Chooses the best value, or the default, which is the highest, if the gain is too small."""
    default = max(figures)
    better = min if unit == "ms" else max
    best = Choice(setting, unit, figures, default, better(figures, key=lambda value: figures[value]))
    return best if best.gain >= 1 + _MIN_GAIN else Choice(setting, unit, figures, default, default)


def _single_image_ms(model: Model, image: Batch) -> float:
    times = []
    for _ in range(_SINGLE_IMAGE_RUNS):
        started = time.perf_counter()
        model.logits(image, all_threads=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def _images_per_second(model: Model, image: Batch, streams: int) -> float:
    """Returns the rate of this many threads, each running one image at a time on one CPU."""
    counts = [0] * streams
    started = time.perf_counter()

    def work(stream: int) -> None:
        while time.perf_counter() - started < _LOAD_SECONDS:
            model.logits(image)
            counts[stream] += 1

    threads = [threading.Thread(target=work, args=(stream,)) for stream in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def _show_progress(share: float) -> None:
    print(f"\r{progress_bar(share)}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)
