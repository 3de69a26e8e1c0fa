"""`service.embedded` with the campaign's trainer, and with waits between restarts that are as short as its leases."""

import typer

from service import child, embedded

MODULES = {"worker.app": "tests.faults.worker", "service.reconciler": "tests.faults.reconciler"}
RESTART_S = 1.0


class _Child(child.Child):
    def __init__(self, name, command, environment, logs):
        super().__init__(name, [MODULES.get(part, part) for part in command], environment, logs)


def main() -> None:
    child.FIRST_BACKOFF_S = child.LONGEST_BACKOFF_S = RESTART_S
    embedded.Child = _Child
    typer.run(embedded.serve)


if __name__ == "__main__":
    main()
