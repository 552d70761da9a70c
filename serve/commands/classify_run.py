"""One run of `python -m serve classify`: what it writes, and what it has counted."""

import argparse
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TextIO

from serve.errors import ConfigError, NoFeatureMaps
from serve.files.embeddings import NAMES_SUFFIX, EmbeddingFile
from serve.files.evaluation import Evaluation
from serve.files.explanations import ExplanationFolder
from serve.files.output_file import output_file
from serve.files.page import Page
from serve.files.progress import FileProgress
from serve.files.records import ExistingRecords, RecordFormat
from serve.files.sorting import Sorter
from serve.model.classifier import Classifier
from serve.model.features import Features
from serve.model.look import DEFAULT_VIEW, Look


@dataclass
class Run:
    """One run and what it has counted.

    Attributes:
        options: from the command line; `top_k` is a number.
        form: how records are written.
        existing: what an earlier run has written.
        left_out: what was not classified, by kind.
        stopped_by: the number of the signal that ended it, else 0.
    """

    options: argparse.Namespace
    classifier: Classifier
    form: RecordFormat
    output: TextIO
    page: Page | None
    evaluation: Evaluation | None
    sorter: Sorter | None
    embeddings: EmbeddingFile | None = None
    explanations: ExplanationFolder | None = None
    existing: ExistingRecords = field(default_factory=ExistingRecords)
    progress: FileProgress = field(default_factory=FileProgress)
    left_out: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    stopped_by: int = 0

    @property
    def readers(self) -> list[Evaluation | Sorter | EmbeddingFile | ExplanationFolder]:
        """What takes each record before it is written."""
        parts = (self.evaluation, self.sorter, self.embeddings, self.explanations)
        return [part for part in parts if part]

    @property
    def look(self) -> Look | None:
        """What is wanted of each image besides its classes."""
        if not self.embeddings and not self.explanations:
            return None
        return Look(bool(self.embeddings), bool(self.explanations), view=DEFAULT_VIEW if self.explanations else 0)

    @property
    def failed(self) -> bool:
        """Whether a file could not be classified, or not be sorted."""
        return bool(self.existing.problems or set(self.statuses) - {200} or (self.sorter and self.sorter.failed))

    def summary(self) -> list[str]:
        """Returns the lines to print at the end."""
        lines = [self._counts()]
        if left_out := [f"{kind} ({count})" for kind, count in sorted(self.left_out.items()) if count]:
            lines.append(f"left out: {', '.join(left_out)}")
        for part in (self.page, self.sorter, self.embeddings, self.explanations, self.evaluation):
            lines += part.report() if part else []
        if self.stopped_by:
            output = self.options.output
            lasting = output and output.is_file()  # not /dev/null
            how = f"; continue {output} with --resume" if lasting else "; with --output, --resume can continue a run"
            lines.append(f"stopped{'' if self.look else how}")
        return lines

    def _counts(self) -> str:
        statuses, existing, seconds = self.statuses, self.existing, self.progress.seconds
        total = statuses.total()
        if not total and not existing.count and not self.stopped_by:
            return "no files found"
        problems = total - statuses[200]
        parts = ", ".join(f"{count} with {status}" for status, count in sorted(statuses.items()) if status != 200)
        return (
            f"{total} file{'s' * (total != 1)} in {seconds:.1f} s, {total / max(seconds, 1e-9):.1f} a second: "
            f"{statuses[200]} classified, {problems} with problems{f' ({parts})' if parts else ''}"
            + (f"; {existing.count} from the earlier run" if existing.count else "")
            + (f", {existing.problems} of them with problems" if existing.problems else "")
        )


def open_run(options: argparse.Namespace, classifier: Classifier, stack: ExitStack) -> Run:
    """Opens what the run writes.

    Raises:
        OutputError: it cannot be written.
    """
    labels, model = classifier.labels, classifier.model
    output = stack.enter_context(output_file(options.output, options.resume))
    page = sorter = evaluation = embeddings = explanations = None
    if options.html:
        file = stack.enter_context(output_file(options.html, options.resume, "--html"))
        page = stack.enter_context(
            Page(file, options.html, f"{model.name}, {model.card['variant']}", options.min_probability)
        )
    if options.sort_into:
        sorter = Sorter(options.sort_into, labels, options.min_probability, copy=options.copy, dry_run=not options.yes)
    if options.embeddings:
        length = _require_features(classifier, "--embeddings").length
        vectors = stack.enter_context(output_file(options.embeddings, resume=False, flag="--embeddings"))
        names_path = options.embeddings.with_suffix(NAMES_SUFFIX)
        names = stack.enter_context(output_file(names_path, resume=False, flag="--embeddings"))
        embeddings = stack.enter_context(EmbeddingFile(vectors, names, options.embeddings, length))
    if options.explain:
        _require_features(classifier, "--explain")
        explanations = ExplanationFolder(options.explain)
    if options.evaluate:
        evaluation = Evaluation(labels)
    form = RecordFormat(options.format, options.top_k, model.name, any(label.imagenet_id for label in labels))
    return Run(options, classifier, form, output, page, evaluation, sorter, embeddings, explanations)


def _require_features(classifier: Classifier, option: str) -> Features:
    """Returns what reads the model's feature maps, which an option needs; raises `ConfigError` if it has none."""
    try:
        return classifier.require_features()
    except NoFeatureMaps as error:
        raise ConfigError(f"{option}: {error}") from error
