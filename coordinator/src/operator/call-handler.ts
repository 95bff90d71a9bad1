/** Runs a handler of ours behind a gRPC method: its result is the answer, its error becomes a status. */
import { once } from 'node:events';
import type { handleServerStreamingCall, handleUnaryCall, ServerWritableStream } from '@grpc/grpc-js';
import type { Logger } from '@moefleet/runtime';
import { toGrpcStatus } from '../grpc-status';
import { type Caller, callerOf } from './caller';

export function unary<Request, Response>(log: Logger, handle: (request: Request, caller: Caller) => Promise<Response>): handleUnaryCall<Request, Response> {
  return (call, callback) => {
    handle(call.request, callerOf(call.metadata)).then((response) => callback(null, response), (error: unknown) => callback(statusOf(error, call.getPath(), log), null));
  };
}

/** `signal` is aborted when the caller goes away. Returns when the stream is over. */
export type StreamHandler<Request, Response> = (request: Request, out: LatestStream<Response>, signal: AbortSignal, caller: Caller) => Promise<void>;

export function serverStream<Request, Response>(log: Logger, handle: StreamHandler<Request, Response>): handleServerStreamingCall<Request, Response> {
  return (call) => {
    const gone = new AbortController();
    call.on('cancelled', () => gone.abort(new CallerGoneError()));
    const out = new LatestStream(call);
    handle(call.request, out, gone.signal, callerOf(call.metadata)).then(
      () => out.end(),
      (error: unknown) => { if (!gone.signal.aborted) call.emit('error', statusOf(error, call.getPath(), log)); },
    );
  };
}

/** For a stream of which every message counts: `send` resolves when the next may be sent, rejects when the caller has gone. */
export type OrderedHandler<Request, Response> = (request: Request, send: (message: Response) => Promise<void>, signal: AbortSignal, caller: Caller) => Promise<void>;

export function orderedStream<Request, Response>(log: Logger, handle: OrderedHandler<Request, Response>): handleServerStreamingCall<Request, Response> {
  return (call) => {
    const gone = new AbortController();
    call.on('cancelled', () => gone.abort(new CallerGoneError()));
    const send = async (message: Response) => {
      gone.signal.throwIfAborted();
      if (!call.write(message)) await once(call, 'drain', { signal: gone.signal });
    };
    handle(call.request, send, gone.signal, callerOf(call.metadata)).then(
      () => call.end(),
      (error: unknown) => { if (!gone.signal.aborted) call.emit('error', statusOf(error, call.getPath(), log)); },
    );
  };
}

/** The caller has cancelled or hung up: nobody is left to answer. */
export class CallerGoneError extends Error {
  override readonly name = 'CallerGoneError';
}

/** Writes one message at a time; while one waits to leave, only the newest of the next is kept. */
export class LatestStream<Response> {
  private next: Response | null = null;
  private writing = false;
  private ending = false;

  constructor(private readonly call: ServerWritableStream<unknown, Response>) {}

  write(message: Response): void {
    this.next = message;
    this.pump();
  }

  end(): void {
    this.ending = true;
    this.pump();
  }

  private pump(): void {
    if (this.writing) return;
    if (this.next === null) {
      if (this.ending) this.call.end();
      return;
    }
    const message = this.next;
    this.next = null;
    this.writing = true;
    this.call.write(message, () => {
      this.writing = false;
      this.pump();
    });
  }
}

function statusOf(error: unknown, path: string, log: Logger) {
  const failure = toGrpcStatus(error);
  if (failure.unexpected) log.error({ err: error, path }, 'call failed');
  return failure;
}
