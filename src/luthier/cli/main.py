"""The ``luthier`` command: words into calls. Every command loads only when it is called."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Group

from luthier.errors import DoesNotFit, Interrupted, LuthierError, UsageError
from luthier.version import __version__

CHOOSE = Group.create_ordered("Choose")
TUNE = Group.create_ordered("Tune")
SHIP = Group.create_ordered("Prove and ship")
HOUSE = Group.create_ordered("House-keeping")

COMMANDS: dict[str, tuple[str, Group, str]] = {
    "recipes": ("luthier.cli.recipes:app", CHOOSE, "Recipes that come with Luthier."),
    "quickstart": (
        "luthier.cli.quickstart:quickstart",
        TUNE,
        "The whole way on a small real model: audit, recommend, plan, train, prove, ship.",
    ),
    "doctor": ("luthier.cli.doctor:doctor", CHOOSE, "What this machine has and what it allows."),
    "models": ("luthier.cli.models:app", CHOOSE, "The catalogue of base models."),
    "licences": ("luthier.cli.licences:app", CHOOSE, "What each licence asks and allows."),
    "recommend": ("luthier.cli.recommend:recommend", CHOOSE, "Which model and method for this task."),
    "import": ("luthier.cli.import_:import_", CHOOSE, "A recipe from another trainer's configuration."),
    "init": ("luthier.cli.init:init", CHOOSE, "A guided recommendation that ends in a recipe."),
    "plan": ("luthier.cli.plan:plan", CHOOSE, "Memory by part, time and cost, before anything loads."),
    "fit": ("luthier.cli.fit:fit", CHOOSE, "What a model needs to be served with a context."),
    "get": ("luthier.cli.get:get", TUNE, "Fetch a model by name: size and licence first, resumable."),
    "train": ("luthier.cli.train:train", TUNE, "Tune a model by a recipe."),
    "launch": ("luthier.cli.launch:launch", TUNE, "Train on a cluster: SLURM, SkyPilot, Kubernetes."),
    "sweep": ("luthier.cli.sweep:sweep", TUNE, "Search settings, compare models, score by rows."),
    "data": ("luthier.cli.data:app", TUNE, "Look at, check and profile training data."),
    "evaluate": ("luthier.cli.evaluate:evaluate", SHIP, "Judge base and tuned model on the same rows."),
    "compare": ("luthier.cli.compare:compare", SHIP, "Rank runs that were judged on the same rows."),
    "export": ("luthier.cli.export:export", SHIP, "Adapter, merged weights and GGUF, checked."),
    "chat": ("luthier.cli.chat:chat", SHIP, "Talk to a run's GGUF."),
    "generate": ("luthier.cli.generate:generate", SHIP, "Continue a text with a tuned or pretrained model."),
    "embed": ("luthier.cli.embed:embed", SHIP, "Vectors of texts by an embedder."),
    "rerank": ("luthier.cli.rerank:rerank", SHIP, "Order documents by their relevance for a query."),
    "classify": ("luthier.cli.classify:classify", SHIP, "Label texts with a tuned classifier."),
    "deploy": ("luthier.cli.deploy:deploy", SHIP, "Ready for Ollama, LM Studio, llama.cpp or vLLM."),
    "deployments": ("luthier.cli.deploy:app", SHIP, "What was deployed, and how to take it back."),
    "serve": ("luthier.cli.serve:serve", SHIP, "An OpenAI-compatible server over tuned models."),
    "report": ("luthier.cli.report:report", SHIP, "Write a run's report."),
    "push": ("luthier.cli.push:push", SHIP, "Send a run's weights, card and papers to the Hub."),
    "registry": ("luthier.cli.registry:app", SHIP, "Tuned models by name, version and alias."),
    "studio": ("luthier.cli.studio:studio", HOUSE, "The whole way in a browser, offline, on this machine."),
    "queue": ("luthier.cli.queue:app", HOUSE, "What waits for this machine, and in which order."),
    "runs": ("luthier.cli.runs:app", HOUSE, "List and look after runs."),
    "config": ("luthier.cli.config:app", HOUSE, "What a setting of a recipe means."),
    "setup": ("luthier.cli.setup:app", HOUSE, "Bring the tools that exports need."),
    "cache": ("luthier.cli.cache:app", HOUSE, "What is kept on disk, and how to free it."),
}


def build() -> App:
    """The command tree. Nothing but names is loaded here."""
    app = App(
        name="luthier",
        version=__version__,
        help="From a task and your hardware to a tuned, proven, deployable open model.",
        help_format="plaintext",
    )
    for name, (target, group, sentence) in COMMANDS.items():
        app.command(target, name=name, group=group, help=sentence)
    app.register_install_completion_command()
    return app


def main(words: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code (see the README for the list)."""
    words = list(sys.argv[1:] if words is None else words)
    # pydantic would look for plugins in every installed package, a tenth of a short command's time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    app = build()
    try:
        code = app(
            words, exit_on_error=False, print_error="--json" not in words, result_action="return_value"
        )
    except CycloptsError as error:
        from luthier.cli.console import err, print_error

        # Cyclopts has said what was wrong and the nearest name, except where JSON is asked for.
        hint = "`luthier --help` lists the commands, and each of them says with --help what it takes"
        if "--json" in words:
            print_error(UsageError(str(error), hint=hint), as_json=True)
        else:
            err().print(f"hint:  {hint}", soft_wrap=True)
        sys.exit(2)
    except LuthierError as error:
        from luthier.cli.console import print_error

        print_error(error, as_json="--json" in words)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        from luthier.cli.console import err, print_error

        stop = Interrupted("stopped", hint="what was done is kept: give the command again to go on")
        if "--json" in words:
            print_error(stop, as_json=True)
        else:
            err().print(f"{stop.message}; {stop.hint}", soft_wrap=True)
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (``| head``): nothing more to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        from luthier.cli.console import print_error

        full = DoesNotFit(f"the disk is full: {error}", hint="free space there, and give the command again")
        print_error(full, as_json="--json" in words)
        sys.exit(full.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
