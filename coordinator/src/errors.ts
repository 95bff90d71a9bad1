/** What can go wrong, one class per thing a caller does differently. `grpc-status.ts` maps them to gRPC codes. */

/** A request that makes no sense; the message names field and value. */
export class InvalidRequestError extends Error {
  override readonly name = 'InvalidRequestError';
  constructor(readonly field: string, readonly value: unknown, readonly expected: string) {
    super(`${field}: ${show(value)} is not ${expected}`);
  }
}

/** Something that was named does not exist. */
export class NotFoundError extends Error {
  override readonly name = 'NotFoundError';
}

/** Who calls is not known: no token, or one that is not in force. */
export class UnauthenticatedError extends Error {
  override readonly name = 'UnauthenticatedError';
}

/** Who calls is known, and may not. */
export class PermissionDeniedError extends Error {
  override readonly name = 'PermissionDeniedError';
}

/** A name is in use by something that stands. */
export class NameTakenError extends Error {
  override readonly name = 'NameTakenError';
}

/** The device has no stream here now; the same request may work later. */
export class DeviceUnavailableError extends Error {
  override readonly name = 'DeviceUnavailableError';
  constructor(readonly deviceId: string, why: string) {
    super(`device ${deviceId} ${why}`);
  }
}

/** The device answered that it cannot do what it was asked. */
export class TaskFailedError extends Error {
  override readonly name = 'TaskFailedError';
  constructor(readonly deviceId: string, reason: string) {
    super(`device ${deviceId} gave up the task: ${reason}`);
  }
}

/** The request makes sense, but not as things stand; the message says what stands in its way. */
export class NotAllowedNowError extends Error {
  override readonly name = 'NotAllowedNowError';
}

/** Too much at once; the same request may work later. */
export class BusyError extends Error {
  override readonly name = 'BusyError';
}

/** The folder or bucket that keeps what devices fetch cannot be read or written; the same request may work later. */
export class StoreFailedError extends Error {
  override readonly name = 'StoreFailedError';
  constructor(readonly place: string, cause: unknown) {
    const { code } = (cause ?? {}) as NodeJS.ErrnoException;
    const remedy = code === 'ENOSPC' || code === 'EDQUOT' ? '; make room there: moefleet model remove NAME, or a larger disk'
      : code === 'EROFS' || code === 'EACCES' ? '; name one that the coordinator can write with --artifact-dir FOLDER' : '';
    super(`what devices fetch is kept in ${place}, which cannot be used now (${reasonOf(cause)})${remedy}`, { cause });
  }
}

/** Another installation holds the device id with a live stream. */
export class DeviceIdTakenError extends Error {
  override readonly name = 'DeviceIdTakenError';
  constructor(readonly deviceId: string, readonly hostname: string, readonly coordinatorId: string) {
    super(
      `device id "${deviceId}" is in use by another installation on host "${hostname || 'unknown'}" (connected to coordinator ${coordinatorId || 'unknown'}); `
      + 'start this agent with another id (--id), or stop the other one',
    );
  }
}

/** Another installation, or another key, has enrolled under the device id. */
export class DeviceEnrolledError extends Error {
  override readonly name = 'DeviceEnrolledError';
  constructor(readonly deviceId: string, hostname: string) {
    super(
      `device id "${deviceId}" belongs to another installation, enrolled on host "${hostname || 'unknown'}"; give this agent an id of its own (--id), `
      + `or give the id free with: moefleet device release ${deviceId}`,
    );
  }
}

/** A newer stream of the same installation has taken over. */
export class ReplacedError extends Error {
  override readonly name = 'ReplacedError';
  constructor(readonly deviceId: string) {
    super(`device ${deviceId}: a newer stream of the same installation has replaced this one`);
  }
}

/** A device that may not be here until an operator or its owner does something; the message says what. */
export class DeviceRefusedError extends Error {
  override readonly name = 'DeviceRefusedError';
  constructor(readonly deviceId: string, why: string) {
    super(`device ${deviceId}: ${why}`);
  }
}

/** The connection shows no certificate that counts. */
export class NoCertificateError extends Error {
  override readonly name = 'NoCertificateError';
}

/** The same installation runs on two machines, and the other one is connected. */
export class ClonedDeviceError extends Error {
  override readonly name = 'ClonedDeviceError';
  constructor(readonly deviceId: string, hostname: string, readonly marked: boolean) {
    super(
      `device ${deviceId} runs twice: another boot of the same installation, on host "${hostname || 'unknown'}", is connected; give one of them a state folder and an id of its own, `
      + `then: moefleet device clear-clone ${deviceId}`,
    );
  }
}

/** An enrolment token that does not (or no longer) let anybody in. */
export class TokenRefusedError extends Error {
  override readonly name = 'TokenRefusedError';
}

/** The coordinator is stopping. */
export class StoppingError extends Error {
  override readonly name = 'StoppingError';
  /** `retryAfterMs`: how long an agent shall wait, so that not all come to the next coordinator at once. */
  constructor(readonly retryAfterMs = 500) {
    super('the coordinator is stopping; connect again');
  }
}

/** More devices want in at once than the coordinator lets in. */
export class OverloadedError extends Error {
  override readonly name = 'OverloadedError';
  constructor(waiting: number, readonly retryAfterMs: number) {
    super(`${waiting} devices wait to be let in already; come again in ${retryAfterMs} ms (the coordinator's --hellos-per-second says how many are let in)`);
  }
}

/** A device goes on sending more than it may. */
export class BudgetExceededError extends Error {
  override readonly name = 'BudgetExceededError';
  constructor(messagesPerSecond: number, bytesPerSecond: number) {
    super(`the device goes on sending more than ${messagesPerSecond} messages or ${bytesPerSecond} bytes per second (the coordinator's --device-messages-per-second and --device-bytes-per-second)`);
  }
}

/** Redis does not answer. Nothing is lost: what was to be written is written when it is back. */
export class RegistryUnavailableError extends Error {
  override readonly name = 'RegistryUnavailableError';
  constructor(readonly url: string, cause: unknown) {
    super(`Redis at ${url} does not answer (${reasonOf(cause)}); start it, or set MOEFLEET_REDIS_URL to where it runs`, { cause });
  }
}

/** Redis answered with something that cannot be what moefleet has written. */
export class RegistryDataError extends Error {
  override readonly name = 'RegistryDataError';
  constructor(readonly key: string, why: string, cause?: unknown) {
    super(`Redis key ${key}: ${why}; if something else writes to this Redis, set MOEFLEET_REDIS_PREFIX, else remove the key with DEL`, { cause });
  }
}

/** A value for a message: quoted, escaped, cut short. Safe in gRPC status details whatever it holds. */
export function show(value: unknown): string {
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean' || value === undefined) return String(value);
  const text = JSON.stringify(value, (_, inner: unknown) => (typeof inner === 'bigint' ? String(inner) : inner)) ?? String(value);
  return text.length > 120 ? `${text.slice(0, 120).replace(/[\ud800-\udfff]/g, '')}…` : text;
}

export function reasonOf(cause: unknown): string {
  const { message, code, name } = (typeof cause === 'object' && cause !== null ? cause : { message: String(cause) }) as Partial<NodeJS.ErrnoException>;
  return message || code || name || 'unknown reason';
}
