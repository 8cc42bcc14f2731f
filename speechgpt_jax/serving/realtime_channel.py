"""Events and items that a Realtime session and its responses send to the client, in order."""

import json
import secrets
from typing import Any

from starlette.websockets import WebSocket

# Items whose ids are kept: a client that adds them for an hour must not fill the memory.
_MOST_ITEMS = 10_000


class Channel:
    """The way to one client.

    Attributes:
      last_item: id of the newest item of the conversation; None before the first.
    """

    def __init__(self, socket: WebSocket):
        """
        Args:
          socket: an accepted connection.
        """
        self._socket = socket
        self.last_item: str | None = None
        self._items: dict[str, None] = {}  # Ids of the newest items.

    async def send(self, kind: str, **fields: Any) -> None:
        """Sends an event of a kind, such as "response.created"."""
        event = {"type": kind, "event_id": new_id("event"), **fields}
        await self._socket.send_text(json.dumps(event))

    def has_item(self, id: str) -> bool:
        """Whether one of the newest items has this id."""
        return id in self._items

    async def add_item(self, item: dict[str, Any]) -> None:
        """Sends an item that is whole from the start."""
        previous = await self.begin_item(item)
        await self.end_item(item, previous)

    async def begin_item(self, item: dict[str, Any]) -> str | None:
        """Sends an item that has no content yet; returns the id of the item before it."""
        previous, self.last_item = self.last_item, item["id"]
        self._items[item["id"]] = None
        if len(self._items) > _MOST_ITEMS:
            del self._items[next(iter(self._items))]
        await self.send("conversation.item.added", item=item, previous_item_id=previous)
        return previous

    async def end_item(self, item: dict[str, Any], previous: str | None) -> None:
        """Sends the whole of an item that was begun."""
        await self.send("conversation.item.done", item=item, previous_item_id=previous)


def message(
    id: str, role: str, part: dict[str, Any] | None, status: str = "completed"
) -> dict[str, Any]:
    """An item: a message with one part, or with none yet."""
    content = [part] if part else []
    kind = {"id": id, "object": "realtime.item", "type": "message"}
    return {**kind, "role": role, "status": status, "content": content}


def new_id(kind: str) -> str:
    """A new id, such as "item_1f0c..."."""
    return f"{kind}_{secrets.token_hex(10)}"
