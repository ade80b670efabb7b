"""Workers in processes of their own, which reach the driver by messages alone."""

import contextlib
import os
import signal
from multiprocessing import Pipe
from multiprocessing.connection import wait

from bench.execution.driver import Crew
from bench.execution.remote import converse


class ProcessCrew(Crew):
    """A worker that is about to send a message for which `kills` holds is killed.

    Args:
        job: what they do.
        kills: called with a worker's number and each of its messages.
    """

    def __init__(self, job, kills=lambda worker, text: False):
        self.job, self.kills = job, kills
        self.processes, self.ends = {}, {}

    def start(self):
        worker = len(self.processes) + 1
        ours, theirs = Pipe()
        process = os.fork()
        if not process:
            for end in (ours, *self.ends.values()):
                end.close()
            self._work(worker, theirs)
        theirs.close()
        self.processes[worker], self.ends[worker] = process, ours
        return worker

    def _work(self, worker, end):
        def ask(text):
            if self.kills(worker, text):
                os.kill(os.getpid(), signal.SIGKILL)
            end.send_bytes(text)
            return end.recv_bytes()

        try:
            end.send_bytes(converse(self.job, ask))
        finally:
            os._exit(0)

    def wait(self, seconds):
        said = []
        workers = {end: worker for worker, end in self.ends.items()}
        for end in wait(list(workers), seconds):
            try:
                said.append((workers[end], end.recv_bytes()))
            except EOFError:
                said.append((workers[end], "it was killed"))
        return said

    def send(self, worker, answer):
        with contextlib.suppress(BrokenPipeError):
            self.ends[worker].send_bytes(answer)

    def stop(self, worker):
        self.ends.pop(worker).close()
        os.kill(self.processes[worker], signal.SIGKILL)
        os.waitpid(self.processes[worker], 0)
