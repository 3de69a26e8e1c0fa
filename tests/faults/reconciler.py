"""`service.reconciler` with the campaign's clock."""

from service import reconciler
from tests.faults.clock import WrongClock


def main() -> None:
    reconciler.SystemClock = WrongClock
    reconciler.main()


if __name__ == "__main__":
    main()
