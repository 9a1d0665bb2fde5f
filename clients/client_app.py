"""The ClientApp: decode a TRAIN message, train its cohort, encode the answer."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.cohort_training import train_cohort
from clients.messages import decode_task, encode_result

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message names and answer for each of them."""
    task = decode_task(message)
    return encode_result(train_cohort(task.config, task.server_round, task.clients, task.plan, task.arrays), message)
