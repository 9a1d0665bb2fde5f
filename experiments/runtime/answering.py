"""Answers one message with a ClientApp, in the same way for every runtime here."""

import traceback

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

# Flower's own number for an exception in a ClientApp
_CLIENT_APP_RAISED = 2


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the app's reply; an exception becomes an error reply that names it."""
    try:
        return app(message, context)
    except KeyboardInterrupt:
        # an interruption by the user
        raise
    except BaseException as error:
        traceback.print_exc()
        return Message(Error(code=_CLIENT_APP_RAISED, reason=f"{type(error).__name__}: {error}"), reply_to=message)
