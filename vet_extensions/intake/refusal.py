"""The exception that carries a rejection from the depth of a reader to the loop over the files. Used inside intake only."""

from vet_extensions.schema import Rejection, RejectionCode


class Refusal(Exception):
    """This file cannot be used. The detail must hold no value from the file that could identify anyone."""

    def __init__(self, code: RejectionCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.rejection = Rejection(code, detail)
