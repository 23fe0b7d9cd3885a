"""The errors of the queue.

QueueError
├── DirectoryInUseError    another process owns the directory
├── NewerSchemaError       the file was written by a newer version
├── ForeignFileError       the file is another program's
├── StorageError           the database can't be written
└── NotRunningError        the queue was not started, or is stopped
"""


class QueueError(Exception):
    """The queue can't do what it was asked.

    Example:
        >>> from statsig_otel.exporters import DirectoryInUseError, QueueError
        >>> issubclass(DirectoryInUseError, QueueError)
        True
    """
