/** The one place where the coordinator's errors become gRPC statuses. */
import { Metadata, status, type StatusObject } from '@grpc/grpc-js';
import {
  BudgetExceededError, BusyError, ClonedDeviceError, DeviceEnrolledError, DeviceIdTakenError, DeviceRefusedError, DeviceUnavailableError, InvalidRequestError,
  NameTakenError, NoCertificateError, NotAllowedNowError, NotFoundError, OverloadedError, PermissionDeniedError, RegistryDataError, RegistryUnavailableError,
  ReplacedError, StoppingError, StoreFailedError, TaskFailedError, TokenRefusedError, UnauthenticatedError,
} from './errors';

/** Milliseconds a client is told to wait, in the trailer `retry-after-ms`, before it tries again. */
const RETRY_AFTER_MS = { registry: 2000, busy: 1000, budget: 30_000 } as const;

export interface GrpcFailure extends Partial<StatusObject> {
  code: status;
  details: string;
  metadata: Metadata;
  /** an error nobody foresaw: worth a log line with its stack */
  unexpected: boolean;
}

export function toGrpcStatus(error: unknown): GrpcFailure {
  if (error instanceof InvalidRequestError) return failure(status.INVALID_ARGUMENT, error);
  if (error instanceof UnauthenticatedError) return failure(status.UNAUTHENTICATED, error);
  if (error instanceof PermissionDeniedError) return failure(status.PERMISSION_DENIED, error);
  if (error instanceof NameTakenError) return failure(status.ALREADY_EXISTS, error);
  if (error instanceof NotFoundError) return failure(status.NOT_FOUND, error);
  if (error instanceof DeviceIdTakenError) return failure(status.ALREADY_EXISTS, error);
  if (error instanceof DeviceRefusedError || error instanceof TokenRefusedError) return failure(status.PERMISSION_DENIED, error);
  if (error instanceof NoCertificateError) return failure(status.UNAUTHENTICATED, error);
  if (error instanceof ClonedDeviceError) return failure(status.FAILED_PRECONDITION, error);
  if (error instanceof DeviceEnrolledError) return failure(status.ALREADY_EXISTS, error);
  if (error instanceof ReplacedError) return failure(status.ABORTED, error);
  if (error instanceof DeviceUnavailableError) return failure(status.UNAVAILABLE, error);
  if (error instanceof TaskFailedError) return failure(status.FAILED_PRECONDITION, error);
  if (error instanceof NotAllowedNowError) return failure(status.FAILED_PRECONDITION, error);
  if (error instanceof BusyError) return failure(status.RESOURCE_EXHAUSTED, error, RETRY_AFTER_MS.busy);
  if (error instanceof StoreFailedError) return failure(status.UNAVAILABLE, error, RETRY_AFTER_MS.registry);
  if (error instanceof StoppingError) return failure(status.UNAVAILABLE, error, error.retryAfterMs);
  if (error instanceof OverloadedError) return failure(status.UNAVAILABLE, error, error.retryAfterMs);
  if (error instanceof BudgetExceededError) return failure(status.RESOURCE_EXHAUSTED, error, RETRY_AFTER_MS.budget);
  if (error instanceof RegistryUnavailableError) return failure(status.UNAVAILABLE, error, RETRY_AFTER_MS.registry);
  if (error instanceof RegistryDataError) return failure(status.DATA_LOSS, error);
  return { code: status.INTERNAL, details: 'internal error; the coordinator\'s log has the details', metadata: new Metadata(), unexpected: true };
}

function failure(code: status, error: Error, retryAfterMs?: number): GrpcFailure {
  const metadata = new Metadata();
  if (retryAfterMs !== undefined) metadata.set('retry-after-ms', String(retryAfterMs));
  return { code, details: error.message, metadata, unexpected: false };
}
