"""Starts the service in the worker, after the fork."""

workers = 1  # one process owns the queue
threads = 8


def post_worker_init(worker: object) -> None:
    from program import service

    service.start()


def worker_exit(server: object, worker: object) -> None:
    from program import service

    service.shutdown()
