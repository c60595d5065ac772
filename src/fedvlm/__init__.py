"""Personalised federated fine-tuning of vision-language models.

```python
import fedvlm
results = fedvlm.run("quickstart", rounds=5, methods=["zero_shot", "pfedmma"])
results.rows            # the table
results.points["pfedmma"][0].final
```
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvlm.errors import FedvlmError

if TYPE_CHECKING:
    from fedvlm.personal.model import PersonalModel
    from fedvlm.runs.results import Results

__all__ = ["FedvlmError", "load", "run"]


def load(folder: str | Path, *, base: str | None = None, device: str = "auto", trust: bool = False) -> PersonalModel:
    """A personal model, as `fedvlm export` writes it; `load(folder).predict(images)` is what it is for.

    `base`: the directory of the CLIP that it needs, if that is elsewhere now. `trust`: whether a method of another
    package may be imported. Raises `FedvlmError`.
    """
    from fedvlm.personal import folder as folders

    return folders.load(folder, base=base, device=device, trust=trust)


def run(
    what: str = "quickstart",
    *words: str,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    processes: int = 1,
    **settings: Any,
) -> Results:
    """Run an experiment as the command line does, and give its results as objects.

    `what` is a preset or a TOML file. `settings` are laid over it as values (`rounds=5`, `seeds=[0, 1]`,
    `method={"pfedmma": {"lr": 0.01}}`), table by table, and `words` over both as `key=value` on the command line.
    `processes`: number of points that run at the same time; with several, a script must call this function under
    `if __name__ == "__main__":`. The contract, which lists the data that are stored on this machine, is in
    `Results.contract`, and is not printed if `quiet`. Raises `FedvlmError` with one message for any mistake.
    """
    from fedvlm import experiment
    from fedvlm.runs.progress import Reporter
    from fedvlm.studies import study
    from fedvlm.studies.study import Options

    if processes > 1 and multiprocessing.parent_process() is not None:
        raise FedvlmError('several processes: call this under `if __name__ == "__main__":`, because each of them reads '
                          "the script again")  # fmt: skip
    chosen = experiment.load(what, words, settings)
    options = Options(resume, overwrite, processes, Reporter(quiet=quiet))
    return study.run(study.single_plan(chosen, None if out is None else Path(out)), options)
