/** The command line's start and end: signals, exit codes, pipes that close early. */
import { CommanderError } from 'commander';
import { isDebug } from './config';
import type { Context } from './context';
import { describeError, EXIT } from './failure';
import { buildProgram } from './program';

/** Output through a pipe may take a moment to drain. */
const LINGER_MS = 2000;

/** Runs one command; never throws. Resolves with the exit code. */
export async function runCli(args: readonly string[], io: Omit<Context, 'setExitCode'>): Promise<number> {
  let exitCode: number = EXIT.ok;
  const context: Context = { ...io, setExitCode: (code) => { exitCode = code; } };
  try {
    await buildProgram(context).parseAsync([...args], { from: 'user' });
    return exitCode;
  } catch (error) {
    if (io.signal.aborted) return EXIT.interrupted;
    // commander has printed its help or its complaint already.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    const { line, exitCode: code } = describeError(error);
    io.stderr.write(isDebug(io.env) && error instanceof Error ? `${error.stack}\n` : `moefleet: ${line}\n`);
    return code;
  }
}

export function runFromShell(): void {
  const interrupt = new AbortController();
  const onSignal = () => {
    if (interrupt.signal.aborted) process.exit(EXIT.interrupted);
    interrupt.abort();
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  // `moefleet devices | head -1` is no error.
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') process.exit(EXIT.ok);
      if (stream === process.stdout) process.stderr.write(`moefleet: standard output cannot be written: ${error.message}\n`);
      process.exit(EXIT.failed);
    });
  }
  void runCli(process.argv.slice(2), {
    env: process.env,
    stdout: process.stdout,
    stderr: process.stderr,
    signal: interrupt.signal,
    releaseSignals: () => {
      process.off('SIGINT', onSignal);
      process.off('SIGTERM', onSignal);
    },
  }).then((code) => {
    process.exitCode = code;
    // Whatever a program left open must not keep a finished command alive.
    setTimeout(() => process.exit(code), LINGER_MS).unref();
  });
}
