/**
 * Bytes that are no message end their call with INVALID_ARGUMENT and the reason. Left to itself grpc-js says INTERNAL, as
 * if the fault were here.
 */
import type { sendUnaryData, ServerUnaryCall, ServerWritableStream, ServiceDefinition, UntypedHandleCall, UntypedServiceImplementation } from '@grpc/grpc-js';
import { InvalidRequestError, reasonOf } from './errors';
import { toGrpcStatus } from './grpc-status';

class Malformed {
  constructor(readonly reason: string) {}
}

/** Of services whose calls have one request each; others are left as they are. */
export function bearMalformed<T extends UntypedServiceImplementation>(definition: ServiceDefinition<T>, implementation: T): { definition: ServiceDefinition; implementation: UntypedServiceImplementation } {
  const bearing: { definition: Record<string, unknown>; handlers: UntypedServiceImplementation } = { definition: { ...definition }, handlers: { ...implementation } };
  for (const [name, method] of Object.entries(definition)) {
    if (method.requestStream) continue;
    const handle = implementation[name] as (call: unknown, callback: unknown) => void;
    bearing.definition[name] = { ...method, requestDeserialize: (bytes: Buffer) => decodeOr(method.requestDeserialize, bytes) };
    const refuse = method.responseStream ? refuseStream : refuseUnary;
    bearing.handlers[name] = ((call: ServerUnaryCall<unknown, unknown>, callback: unknown) => {
      if (call.request instanceof Malformed) refuse(call, toGrpcStatus(new InvalidRequestError('request', call.request.reason, `a ${name} request`)), callback);
      else handle(call, callback);
    }) as UntypedHandleCall;
  }
  return { definition: bearing.definition as ServiceDefinition, implementation: bearing.handlers };
}

function decodeOr(decode: (bytes: Buffer) => unknown, bytes: Buffer): unknown {
  try {
    return decode(bytes);
  } catch (error) {
    return new Malformed(reasonOf(error));
  }
}

function refuseUnary(_: unknown, failure: ReturnType<typeof toGrpcStatus>, callback: unknown): void {
  (callback as sendUnaryData<unknown>)(failure, null);
}

function refuseStream(call: unknown, failure: ReturnType<typeof toGrpcStatus>): void {
  (call as ServerWritableStream<unknown, unknown>).emit('error', failure);
}
