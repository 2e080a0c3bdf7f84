"""The celery application of the examples in `config/`. Without a broker it uses a directory."""

import os

from celery import Celery

directory = os.environ.get("QUEUE_DIRECTORY", "")
broker = "filesystem://" if directory else "redis://localhost:6379/0"
app = Celery("jobs", broker=os.environ.get("BROKER_URL", broker))
app.conf.broker_connection_retry_on_startup = True
if directory:
    app.conf.broker_transport_options = {
        "data_folder_in": directory,
        "data_folder_out": directory,
        "control_folder": directory + "/control",
        "store_processed": False,
    }
app.conf.beat_schedule = {"report": {"task": "jobs.report", "schedule": 1.0}}


@app.task
def report() -> None:
    print("reported", flush=True)
