/**
 * The learner's way to the registry: the coordinator's LearnerService. Calls outlive a coordinator that is away: they
 * are tried again with jittered backoff until it is back or the caller gives up, so that a surface that took minutes
 * to measure is not lost to a restart. The one file that reads gRPC status.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type CallOptions, type ClientReadableStream, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { bearerInterceptor, type Device, type DeviceKnowledge, KnowledgeServiceClient, LearnerServiceClient, type Proposal, type QualitySurface, type StreamUseResponse } from '@moefleet/proto';
import { backoffMs, COORDINATOR_NAME, type Logger } from '@moefleet/runtime';
import { type UseBits, useBits } from './drift/use-bits';

const DEADLINE_MS = 10_000;
/** Of what is streamed, a fleet's worth. */
const STREAM_DEADLINE_MS = 300_000;
const BACKOFF = { baseMs: 250, maxMs: 10_000 };
const MAX_MESSAGE_BYTES = 1 << 30;
/** A few KiB each; a coordinator takes 16 MiB. */
const KNOWLEDGE_PER_CALL = 500;

type LinkState = { t: 'up' } | { t: 'away'; sinceMs: number };

/** The coordinator refused a call; trying again would be no use. */
export class CoordinatorRefusedError extends Error {
  override readonly name = 'CoordinatorRefusedError';
  constructor(call: string, readonly code: status, details: string, options?: ErrorOptions) {
    super(`${call}: the coordinator refused (${status[code]}): ${details}`, options);
  }
}

type Unary<Request, Response> = (
  request: Request, metadata: Metadata, options: Partial<CallOptions>, callback: (error: ServiceError | null, response: Response) => void,
) => { cancel(): void };

export class CoordinatorLink {
  private readonly client: LearnerServiceClient;
  private readonly knowledge: KnowledgeServiceClient;
  private state: LinkState = { t: 'up' };

  constructor(
    private readonly address: string,
    token: string | null,
    private readonly log: Logger,
    private readonly random: () => number = Math.random,
    private readonly nowMs: () => number = Date.now,
    caPem: Buffer | null = null,
  ) {
    const interceptors = token === null ? [] : [bearerInterceptor(token)];
    this.client = new LearnerServiceClient(address, caPem ? credentials.createSsl(caPem) : credentials.createInsecure(), {
      ...(caPem ? { 'grpc.ssl_target_name_override': COORDINATOR_NAME } : {}),
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
      'grpc.enable_retries': 0,
      interceptors,
      'grpc.max_reconnect_backoff_ms': BACKOFF.maxMs,
    });
    this.knowledge = new KnowledgeServiceClient(address, credentials.createInsecure(), { channelOverride: this.client.getChannel(), interceptors });
  }

  get up(): boolean {
    return this.state.t === 'up';
  }

  async listLearnable(signal: AbortSignal): Promise<Device[]> {
    const streamed = await this.gather('StreamLearnable', () => this.client.streamLearnable({}, this.streamOptions()), ({ devices }) => devices, signal);
    return streamed ?? (await this.persist('ListLearnable', this.client.listLearnable.bind(this.client), {}, signal)).devices;
  }

  /** A coordinator of an earlier release keeps none: every run then begins from the newest frames alone. */
  async listKnowledge(signal: AbortSignal): Promise<DeviceKnowledge[]> {
    const streamed = await this.gather('StreamKnowledge', () => this.knowledge.streamKnowledge({}, this.streamOptions()), ({ devices }) => devices, signal);
    if (streamed) return streamed;
    return await known(async () => (await this.persist('ListKnowledge', this.knowledge.listKnowledge.bind(this.knowledge), {}, signal)).devices) ?? [];
  }

  /** Of devices that have told since (ms, by the coordinators' clocks); a coordinator of an earlier release keeps none. */
  async useBits(modelHash: string, sinceMs: bigint, signal: AbortSignal): Promise<Map<string, UseBits>> {
    const each = ({ uses }: StreamUseResponse) => uses.map((use): [string, UseBits] => [use.deviceId, useBits(use)]);
    return new Map(await this.gather('StreamUse', () => this.knowledge.streamUse({ modelHash, sinceMs }, this.streamOptions()), each, signal));
  }

  async putKnowledge(devices: readonly DeviceKnowledge[], signal: AbortSignal): Promise<void> {
    for (let at = 0; at < devices.length; at += KNOWLEDGE_PER_CALL) {
      if (!await known(() => this.persist('PutKnowledge', this.knowledge.putKnowledge.bind(this.knowledge), { devices: devices.slice(at, at + KNOWLEDGE_PER_CALL) }, signal))) return;
    }
  }

  /** null where none has been stored. */
  async getSurface(modelHash: string, textHash: string, signal: AbortSignal): Promise<QualitySurface | null> {
    try {
      return (await this.persist('GetSurface', this.client.getSurface.bind(this.client), { modelHash, textHash }, signal)).surface ?? null;
    } catch (error) {
      if (error instanceof CoordinatorRefusedError && error.code === status.NOT_FOUND) return null;
      if (error instanceof CoordinatorRefusedError && error.code === status.DATA_LOSS) {
        this.log.warn({ detail: error.message }, 'stored surface cannot be read, measuring anew');
        return null;
      }
      throw error;
    }
  }

  async putSurface(surface: QualitySurface, signal: AbortSignal): Promise<void> {
    await this.persist('PutSurface', this.client.putSurface.bind(this.client), { surface }, signal);
  }

  /** The rollout's id, empty where nothing changed. */
  async propose(proposals: Proposal[], signal: AbortSignal): Promise<string> {
    return (await this.persist('Propose', this.client.propose.bind(this.client), { proposals }, signal)).rolloutId;
  }

  /** For people who watch; of no consequence where it fails. */
  async reportActivity(activity: string, signal: AbortSignal): Promise<void> {
    await this.call(this.client.reportActivity.bind(this.client), { activity }, signal).catch(() => {});
  }

  close(): void {
    this.knowledge.close();
    this.client.close();
  }

  private persist<Request, Response>(name: string, method: Unary<Request, Response>, request: Request, signal: AbortSignal): Promise<Response> {
    return this.untilThere(name, () => this.call(method, request, signal), signal);
  }

  /** All that a stream sends, from its start again where it breaks off; null: the coordinator has no such call. */
  private gather<Message, Item>(name: string, open: () => ClientReadableStream<Message>, items: (message: Message) => Item[], signal: AbortSignal): Promise<Item[] | null> {
    return known(() => this.untilThere(name, () => readAll(open(), items, signal), signal));
  }

  private streamOptions(): Partial<CallOptions> {
    return { deadline: this.nowMs() + STREAM_DEADLINE_MS };
  }

  private async untilThere<Response>(name: string, once: () => Promise<Response>, signal: AbortSignal): Promise<Response> {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const response = await once();
        this.become({ t: 'up' }, name);
        return response;
      } catch (error) {
        signal.throwIfAborted();
        const { code, details, message } = error as ServiceError;
        if (code !== status.UNAVAILABLE && code !== status.DEADLINE_EXCEEDED) {
          throw new CoordinatorRefusedError(name, code, details || message, { cause: error });
        }
        this.become({ t: 'away', sinceMs: this.nowMs() }, details || message);
        await sleep(backoffMs(attempt, { ...BACKOFF, random: this.random }), undefined, { signal }).catch(() => signal.throwIfAborted());
      }
    }
  }

  private call<Request, Response>(method: Unary<Request, Response>, request: Request, signal: AbortSignal): Promise<Response> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason as Error);
      const call = method(request, new Metadata(), { deadline: this.nowMs() + DEADLINE_MS }, (error, response) => {
        signal.removeEventListener('abort', cancel);
        if (error) reject(error);
        else resolve(response);
      });
      const cancel = () => call.cancel();
      signal.addEventListener('abort', cancel, { once: true });
    });
  }

  private become(next: LinkState, detail: string): void {
    const before = this.state;
    if (before.t === next.t) return;
    this.state = next;
    if (next.t === 'away') this.log.warn({ operator: this.address, detail }, 'coordinator away, trying again');
    else this.log.info({ operator: this.address, awayMs: before.t === 'away' ? this.nowMs() - before.sinceMs : 0 }, 'coordinator back');
  }
}

/** null where the coordinator is of a release that has no such call. */
async function known<T>(call: () => Promise<T>): Promise<T | null> {
  try {
    return await call();
  } catch (error) {
    if (error instanceof CoordinatorRefusedError && error.code === status.UNIMPLEMENTED) return null;
    throw error;
  }
}

async function readAll<Message, Item>(stream: ClientReadableStream<Message>, items: (message: Message) => Item[], signal: AbortSignal): Promise<Item[]> {
  const cancel = () => stream.cancel();
  signal.addEventListener('abort', cancel, { once: true });
  try {
    signal.throwIfAborted();
    const all: Item[] = [];
    for await (const message of stream as AsyncIterable<Message>) for (const item of items(message)) all.push(item);
    return all;
  } finally {
    signal.removeEventListener('abort', cancel);
    stream.cancel();
  }
}
