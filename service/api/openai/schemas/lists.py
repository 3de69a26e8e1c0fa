"""What all of OpenAI's objects share: times, and pages of lists."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.lists import Window

MOST_ITEMS = 100


class Cursor(BaseModel):
    """Which page."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    after: str | None = Field(None, max_length=64)
    """Id of the item after which the page begins."""
    limit: int = Field(20, ge=1, le=10_000)
    """Largest number of items. A page has 100 at most; `has_more` tells whether others follow."""

    @property
    def items(self) -> int:
        """Largest number of items of this page."""
        return min(self.limit, MOST_ITEMS)

    def window(self, *, descending: bool = True) -> Window:
        """The same as the arguments of a repository's `list`."""
        return Window(limit=self.items, descending=descending, after=self.after, before=None)


def unix(time: datetime) -> int:
    """Whole seconds since 1970."""
    return int(time.timestamp())
