"Talks to an engine in a process, line by line, and knows when each line came"
import subprocess, sys, threading, time
from queue import Empty, Queue

import psutil

class Talk:
    "An engine that was started by `words`"
    def __init__(self, *words):
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, self.said = Queue(), []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout: self.lines.put((time.perf_counter(), line.rstrip('\n')))
        self.lines.put((time.perf_counter(), None))

    def tell(self, *lines):
        "Say lines, at one time"
        self.process.stdin.write(''.join(f'{line}\n' for line in lines))
        self.process.stdin.flush()
        return time.perf_counter()

    def hear(self, word, seconds=60):
        "The next line that begins with `word`, and when it came"
        end = time.perf_counter() + seconds
        while True:
            try: when, line = self.lines.get(timeout=max(end - time.perf_counter(), 0.001))
            except Empty: raise AssertionError(f'no {word} in {seconds} s; it said {self.said[-5:]}') from None
            assert line is not None, f'it ended: {self.said[-5:]} {self.process.stderr.read()[-2000:]}'
            self.said.append(line)
            if line.split(' ')[0] == word: return line, when

    def __enter__(self): return self

    def __exit__(self, *_):
        if self.process.poll() is None: psutil.Process(self.process.pid).kill()
        self.process.wait(10)

def our_engine(run, *flags):
    "Ours, with the net of `run`, ready"
    engine = Talk(sys.executable, '-m', 'maou_nb', 'usi', '--run', str(run), *flags)
    engine.tell('usi', 'isready', 'usinewgame')
    engine.hear('readyok', 120)
    return engine
