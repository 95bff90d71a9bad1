/**
 * What waits to be written to one agent. At most one message is in the stream at a time; a newer Desired replaces one
 * that still waits; tasks are few (the session sees to it). So a device that reads slowly or not at all holds a few
 * messages here and no more.
 */
import type { ConnectResponse, Desired, ModelPeers, Pace, WarmList, WindowAck } from '@moefleet/proto';

type Body = NonNullable<ConnectResponse['body']>;

export interface MessageSink {
  /** `written` is called when the message has left; for a peer that does not read, that is never. */
  write(message: ConnectResponse, written: () => void): void;
}

export class Outbox {
  private readonly urgent: Body[] = [];
  private desired: Desired | null = null;
  private pace: Pace | null = null;
  private warmList: WarmList | null = null;
  private windowAck: WindowAck | null = null;
  /** by model; a device has a few */
  private peers: Map<string, ModelPeers> | null = null;
  private fullState = false;
  private writing = false;
  private closed = false;

  /** `onDesired` is told when a Desired leaves for the stream. */
  constructor(private readonly sink: MessageSink, private readonly onDesired: (desired: Desired) => void) {}

  /** Welcome, Task or CancelTask: kept in order. The caller bounds their number. */
  post(body: Extract<Body, { $case: 'welcome' | 'task' | 'cancelTask' }>): void {
    this.urgent.push(body);
    this.pump();
  }

  postDesired(desired: Desired): void {
    this.desired = desired;
    this.pump();
  }

  postPace(pace: Pace): void {
    this.pace = pace;
    this.pump();
  }

  postWarmList(list: WarmList): void {
    this.warmList = list;
    this.pump();
  }

  /** The latest replaces one that still waits: an agent waits for the answer to its latest part alone. */
  postWindowAck(ack: WindowAck): void {
    this.windowAck = ack;
    this.pump();
  }

  postModelPeers(peers: ModelPeers): void {
    this.peers ??= new Map();
    this.peers.set(peers.manifestSha256, peers);
    this.pump();
  }

  postReportFullState(): void {
    this.fullState = true;
    this.pump();
  }

  /** Messages that wait, beside the latest Desired. */
  get backlog(): number {
    return this.urgent.length;
  }

  close(): void {
    this.closed = true;
    this.urgent.length = 0;
    this.desired = null;
    this.pace = null;
    this.warmList = null;
    this.windowAck = null;
    this.peers = null;
  }

  private pump(): void {
    if (this.writing || this.closed) return;
    const body = this.take();
    if (!body) return;
    this.writing = true;
    this.sink.write({ body }, () => {
      this.writing = false;
      this.pump();
    });
  }

  private take(): Body | null {
    const urgent = this.urgent.shift();
    if (urgent) return urgent;
    if (this.desired) {
      const value = this.desired;
      this.desired = null;
      this.onDesired(value);
      return { $case: 'desired', value };
    }
    if (this.pace) {
      const value = this.pace;
      this.pace = null;
      return { $case: 'pace', value };
    }
    if (this.warmList) {
      const value = this.warmList;
      this.warmList = null;
      return { $case: 'warmList', value };
    }
    if (this.windowAck) {
      const value = this.windowAck;
      this.windowAck = null;
      return { $case: 'windowAck', value };
    }
    const [model, value] = this.peers?.entries().next().value ?? [];
    if (model !== undefined) {
      this.peers!.delete(model);
      return { $case: 'modelPeers', value: value! };
    }
    if (!this.fullState) return null;
    this.fullState = false;
    return { $case: 'reportFullState', value: {} };
  }
}
