/** One class per thing a caller does differently; `code` is the engine's own, so that it survives a process boundary. */
import type { EngineErrorCode } from '../native';

export class EngineError extends Error {
  constructor(readonly code: EngineErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The file is no model this engine can run; another file is needed. */
export class ModelFormatError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('MODEL_FORMAT', message, options); }
}

/** A valid model, but without experts. */
export class NotMoeError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('NOT_MOE', message, options); }
}

/** The file is not the one that was loaded any more; load it again. */
export class ModelChangedError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('MODEL_CHANGED', message, options); }
}

/** The operating system failed a read or refused memory; trying again may help. */
export class EngineIoError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('IO', message, options); }
}

export class BadArgumentError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('BAD_ARGUMENT', message, options); }
}

/** The memory granted does not hold what one token needs; the message has the arithmetic. */
export class CapacityError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('CAPACITY', message, options); }
}

export class ContextFullError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('CONTEXT_FULL', message, options); }
}

/** One request at a time: wait for the running one. */
export class EngineBusyError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('BUSY', message, options); }
}

export class EngineClosedError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('CLOSED', message, options); }
}

/** An evaluation ended because its caller asked for it. */
export class EngineCancelledError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('CANCELLED', message, options); }
}

export class EngineInternalError extends EngineError {
  constructor(message: string, options?: { cause?: unknown }) { super('INTERNAL', message, options); }
}

const CLASSES: Record<EngineErrorCode, new (message: string, options?: { cause?: unknown }) => EngineError> = {
  MODEL_FORMAT: ModelFormatError, NOT_MOE: NotMoeError, MODEL_CHANGED: ModelChangedError, IO: EngineIoError, BAD_ARGUMENT: BadArgumentError, CAPACITY: CapacityError,
  CONTEXT_FULL: ContextFullError, BUSY: EngineBusyError, CLOSED: EngineClosedError, CANCELLED: EngineCancelledError,
  INTERNAL: EngineInternalError,
};

/** The addon's plain error as its class; anything else (what a callback threw) unchanged. */
export function toEngineError(error: unknown): unknown {
  if (error instanceof EngineError || typeof error !== 'object' || error === null) return error;
  // Judged by its fields: the addon's errors may be of another realm's Error.
  const { code, message } = error as { code?: unknown; message?: unknown };
  if (typeof code !== 'string' || !Object.hasOwn(CLASSES, code)) return error;
  return new CLASSES[code as EngineErrorCode](String(message), { cause: error });
}
