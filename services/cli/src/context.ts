/** What every command is given, so that none of them reaches for the process. */
import type { Writable } from 'node:stream';
import type { Env } from '@moefleet/runtime';

export interface Context {
  env: Env;
  /** data only */
  stdout: Writable;
  /** progress and errors */
  stderr: Writable & { isTTY?: boolean };
  /** aborted by Ctrl-C and SIGTERM */
  signal: AbortSignal;
  /** leaves signals to a program that handles them itself */
  releaseSignals(): void;
  /** the command's exit code where it ends without an error */
  setExitCode(code: number): void;
}
