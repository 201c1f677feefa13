"""The request for running on several processes."""

from collections.abc import Mapping
from dataclasses import dataclass

from parallax.requests.option import Request, option


@dataclass(frozen=True)
class ProcessesRequest(Request):
    """How a process finds the others of its run; documented at `px.initialize`."""

    distributed: bool = option(
        False,
        "Run on the devices of several processes, each started with this command. Slurm, Open MPI "
        "and Kubernetes are detected; otherwise give --coordinator, --num_processes and "
        "--process_id. See docs/cluster.md.",
        "switch",
    )
    coordinator: str | None = option(
        None, "HOST:PORT of process 0: a free port there that all others reach."
    )
    num_processes: int | None = option(None, "Number of processes.", "whole", at_least=1)
    process_id: int | None = option(None, "Number of this process, from 0.", "whole", at_least=0)
    start_timeout: int = option(
        300, "How long to wait for all processes to start.", "whole", unit="s", at_least=1
    )
    log_dir: str | None = option(
        None,
        "Folder for what the processes other than 0 print, as process-I.log. Unset: logs in the "
        "folder of the results, or here.",
    )

    def unused(self) -> Mapping[str, str]:
        """Return the fields that matter only to several processes."""
        names = ("coordinator", "num_processes", "process_id", "start_timeout", "log_dir")
        return {} if self.distributed else dict.fromkeys(names, "without --distributed")
