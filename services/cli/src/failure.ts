/** What a command's end tells the shell. */
import { type ServiceError, status } from '@grpc/grpc-js';
import { ConfigError } from '@moefleet/runtime';
import { InvalidArgumentError } from 'commander';

export const EXIT = {
  ok: 0,
  failed: 1,
  /** a flag, a file or a model that makes no sense */
  usage: 2,
  /** every device that can be reached has applied it; the others get it when they come back */
  offline: 3,
  interrupted: 130,
} as const;

/** Ends the command with one line on standard error: the thing, its value, the next step. */
export class Failure extends Error {
  override readonly name = 'Failure';
  constructor(message: string, readonly exitCode: number = EXIT.failed, options?: ErrorOptions) {
    super(message, options);
  }
}

/** Bad input of the caller's. */
export class UsageFailure extends Failure {
  constructor(message: string, options?: ErrorOptions) {
    super(message, EXIT.usage, options);
  }
}

/** Any error as one line and an exit code. */
export function describeError(error: unknown): { line: string; exitCode: number } {
  const line = oneLine(error instanceof Error ? error.message : String(error));
  if (error instanceof Failure) return { line, exitCode: error.exitCode };
  if (error instanceof ConfigError || error instanceof InvalidArgumentError) return { line, exitCode: EXIT.usage };
  return { line, exitCode: EXIT.failed };
}

/** The status that a call of the coordinator ended with; undefined for a failure of another kind. */
export function statusOf(error: unknown): status | undefined {
  return error instanceof Failure ? (error.cause as Partial<ServiceError> | undefined)?.code : undefined;
}

/** Exit code for a status the coordinator answered with. */
export function exitCodeOfStatus(code: status): number {
  return code === status.INVALID_ARGUMENT ? EXIT.usage : EXIT.failed;
}

function oneLine(text: string): string {
  return text.trim().replace(/\s*\n\s*/g, '; ');
}
