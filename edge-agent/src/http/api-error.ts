/** A refusal in the form OpenAI's clients understand; their error classes go by the status. */
import { HostUnavailableError } from '../engine-host';
import { QueueFullError } from '../engine-queue';

export type ApiErrorType =
  | 'invalid_request_error' | 'authentication_error' | 'permission_error' | 'not_found_error' | 'rate_limit_error' | 'server_error';

export class ApiError extends Error {
  override readonly name = 'ApiError';

  constructor(
    readonly status: number,
    readonly type: ApiErrorType,
    message: string,
    /** the request field it is about */
    readonly param: string | null = null,
    readonly code: string | null = null,
    readonly retryAfterSeconds: number | null = null,
  ) {
    super(message);
  }

  body(): { error: { message: string; type: string; param: string | null; code: string | null } } {
    return { error: { message: this.message, type: this.type, param: this.param, code: this.code } };
  }
}

/** 400: the request is at fault; `param` names the field. */
export function badRequest(param: string | null, message: string, code: string | null = null): ApiError {
  return new ApiError(400, 'invalid_request_error', message, param, code);
}

export function contextLengthExceeded(param: string | null, message: string): ApiError {
  return badRequest(param, message, 'context_length_exceeded');
}

/** What a client is told of an error of the queue, the host or the engine. `retryAfterSeconds`: a fair wait for a turn. */
export function toApiError(error: unknown, retryAfterSeconds: number): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof QueueFullError) {
    return new ApiError(429, 'rate_limit_error', error.message, null, 'queue_full', retryAfterSeconds);
  }
  if (error instanceof HostUnavailableError) {
    return new ApiError(503, 'server_error', error.message, null, 'engine_unavailable', error.retryable ? retryAfterSeconds : null);
  }
  const message = error instanceof Error ? error.message : String(error);
  switch ((error as { code?: unknown } | null)?.code) {
    case 'CONTEXT_FULL': return contextLengthExceeded(null, message);
    case 'BAD_ARGUMENT': return badRequest(null, message);
    case 'MODEL_CHANGED': return new ApiError(503, 'server_error', message, null, 'engine_unavailable');
    case 'BUSY': case 'CLOSED': case 'CANCELLED': return new ApiError(503, 'server_error', message, null, 'engine_unavailable', retryAfterSeconds);
    default: return new ApiError(500, 'server_error', message, null, 'engine_error');
  }
}
