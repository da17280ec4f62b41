"""One training run, from a YAML to the table at its end."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lcl_composer.build import build_trainer, run_of
from lcl_composer.checkpoint import only_safe_loads
from lcl_composer.compatibility import mend_composer, mend_torchrun
from lcl_composer.config import RunConfig, compose
from lcl_composer.config.checks import effective_negatives
from lcl_composer.config.trial import this_device
from lcl_composer.crash import told_in_one_line
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import print_to_any_terminal
from lcl_composer.inputs import digests_of
from lcl_composer.kernels import resolve_backend
from lcl_composer.models.encoder import in_a_line
from lcl_composer.nodes import name_signal_files_by_node, on_first_rank
from lcl_composer.prepare import prepare
from lcl_composer.run_folder import RunFolder
from lcl_composer.stop_request import Stopped

if TYPE_CHECKING:
    from composer import Trainer


def train(path: Path, overrides: list[str]) -> None:
    """Compose the YAML, make or find its data, train, measure.

    A run that is already finished says so and does nothing; one whose end was cut off makes up for it.

    Args:
        path: The experiment's YAML.
        overrides: ``a.b=c`` settings laid over it.

    Raises:
        LCLError: A problem that the user can mend, with a message of one line.
        LostConnection: Another rank is gone.
        Stopped: The run was asked to stop and wrote a checkpoint.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    print_to_any_terminal()
    composed = compose(path, overrides, this_device())
    only_safe_loads()
    mend_composer()
    mend_torchrun()

    from composer.utils import dist, get_device

    from lcl_composer.callbacks.notify import told
    from lcl_composer.methods.method import method_of

    name_signal_files_by_node()
    run = run_of(composed.run)
    places = run.folder, "" if run.remote else run.checkpoints
    with (
        told(run.name, composed.run.callbacks),
        told_in_one_line(*places),
        composed.located(),
        ExitStack() as stack,
    ):
        dist.initialize_dist(get_device(None), composed.run.dist_timeout)
        on_first_rank(lambda: stack.enter_context(run.held()))
        with dist.run_local_rank_zero_first():
            if dist.get_local_rank() == 0:
                clean_shared_memory()
                prepare(composed.run)
        trainer = build_trainer(composed)
        if dist.get_global_rank() == 0:
            for note in composed.notes:
                print(f"note: {note}")
            print(opening_line(composed.run, trainer, dist.get_world_size()), flush=True)
            encoder = method_of(trainer.state).encoder
            if encoder.weights:
                print(f"encoder: {in_a_line(encoder.description)}", flush=True)
        run_to_end(trainer, run, composed.run)


def run_to_end(trainer: Trainer, run: RunFolder, config: RunConfig) -> None:
    """Train what is left, or only make up for an end that was cut off, and mark the run as finished.

    Raises:
        DataError: The run is finished, on other files than lie there now.
        Stopped: The run was asked to stop and wrote a checkpoint.
    """
    from composer.utils import dist

    from lcl_composer.callbacks.checkpoint_contents import CheckpointContents

    state, first = trainer.state, dist.get_global_rank() == 0
    assert state.max_duration is not None, "the config gives it"
    contents = next(c for c in state.callbacks if isinstance(c, CheckpointContents))
    inputs = digests_of(config.model_dump(mode="json")) if first else {}
    ended = contents.ended or state.timestamp >= state.max_duration
    if ended:
        on_first_rank(lambda: run.check_inputs(config.evaluation, inputs))
    if ended and on_first_rank(lambda: run.finished(int(state.timestamp.batch), config.evaluation)):
        if first:
            early = state.timestamp < state.max_duration
            why = ", stopped before max_duration, with a longer one it goes on" if early else ""
            print(f"{run.name} is already finished ({state.timestamp.batch}{why}); nothing to do")
        trainer.close()
        return
    try:
        if ended:
            if first:
                print(
                    f"{run.name} was trained to its end ({state.timestamp.batch}); what is missing is made up"
                )
                contents.say_changes(int(state.timestamp.batch))
            make_up_end(trainer)
        else:
            trainer.fit()
    except Stopped:
        trainer.close()
        raise
    trainer.close()
    if first:
        run.note_end(int(state.timestamp.batch), config.evaluation, inputs)


def make_up_end(trainer: Trainer) -> None:
    """Do what follows the last batch: export, measure, draw; ``fit`` refuses a run with no batch left."""
    from composer.utils import reproducibility

    if trainer._rng_state is not None:
        reproducibility.load_rng_state(trainer._rng_state)
        trainer._rng_state = None
    trainer.state.stop_training()  # also where a stopper ended it before max_duration
    trainer._train_loop()


def opening_line(config: RunConfig, trainer: Trainer, ranks: int) -> str:
    """What trains, on what, against how many negatives, and which kernels compute the losses."""
    device = next(trainer.state.model.parameters()).device
    parameters = sum(parameter.numel() for parameter in trainer.state.model.parameters())
    contrasted = effective_negatives(config, ranks) or "none"
    return (
        f"{config.run_name}: {parameters / 1e6:,.1f}M parameters on {ranks} x {device.type}, "
        f"{config.global_train_batch_size} documents a batch, {contrasted} contrasted at once, "
        f"losses by {resolve_backend(device, config.method.spec().get('backend'))}; runs/{config.run_name}"
    )
