import { Metadata, Server, ServerCredentials, type ServerDuplexStream, status } from '@grpc/grpc-js';
import { AgentServiceService, type ConnectRequest, ConnectResponse, DeviceInfo, Reported, RouterWindow, TelemetryFrame } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { AgentSession, type SessionOptions } from './agent-session';
import { StreamOutbox } from './stream-outbox';
import { until } from '../../../test/harness/ports';

type Call = ServerDuplexStream<ConnectRequest, ConnectResponse>;

class TestGateway {
  readonly received: ConnectRequest[] = [];
  calls: Call[] = [];
  port = 0;
  private server = new Server();

  /** `onCall` false: the stream is answered with Welcome. */
  async start(port = 0, onCall: (call: Call) => boolean = () => false): Promise<this> {
    this.server = new Server();
    this.server.addService(AgentServiceService, {
      connect: (call: Call) => {
        this.calls.push(call);
        call.on('data', (message: ConnectRequest) => {
          this.received.push(message);
          if (message.body?.$case === 'hello' && !onCall(call)) this.send(call, { $case: 'welcome', value: { coordinatorId: 'c1', protocolVersion: 1, telemetryIntervalMs: 100, expertUseIntervalMs: 0 } });
        });
        call.on('error', () => {});
        call.on('end', () => call.end());
      },
    });
    this.port = await new Promise((resolve, reject) => this.server.bindAsync(`127.0.0.1:${port}`, ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))));
    return this;
  }

  send(call: Call, body: ConnectResponse['body']): void {
    call.write(ConnectResponse.fromPartial({ body }));
  }

  kinds(): (string | undefined)[] {
    return this.received.map(({ body }) => body?.$case);
  }

  stop(): void {
    this.server.forceShutdown();
  }
}

let gateway: TestGateway;
let session: AgentSession;
const log = createLogger('test', 'silent');

function open(port: number, over: Partial<SessionOptions> = {}): AgentSession {
  let sequence = 0n;
  session = new AgentSession({
    coordinator: `127.0.0.1:${port}`, deviceId: 'd1', installId: 'i1', bootId: 'b1', outbox: new StreamOutbox(), log, random: () => 0.1,
    info: () => DeviceInfo.fromPartial({ hostname: 'h' }), reported: () => Reported.fromPartial({ generation: 3n }),
    telemetry: async () => TelemetryFrame.fromPartial({ sequence: (sequence += 1n) }),
    onDesired: () => {}, onTask: () => {}, onCancelTask: () => {}, onLost: () => {}, ...over,
  });
  return session;
}

afterEach(async () => {
  await session?.stop();
  gateway?.stop();
});

test('says hello first, then all of its state, then telemetry at the interval it was given', async () => {
  gateway = await new TestGateway().start();
  await open(gateway.port).start();
  await until('three frames', () => gateway.kinds().filter((kind) => kind === 'telemetry').length >= 3);
  expect(gateway.received[0]!.body).toMatchObject({ $case: 'hello', value: { deviceId: 'd1', installId: 'i1', bootId: 'b1', protocolVersion: 1, info: { hostname: 'h' }, reported: { generation: 3n } } });
  expect(gateway.kinds()).toEqual(expect.arrayContaining(['info', 'reported']));
  expect(session.connected).toBe(true);
});

test('hands over what is desired and the tasks, as bytes and ids', async () => {
  const seen: unknown[] = [];
  gateway = await new TestGateway().start();
  await open(gateway.port, { onDesired: (desired) => seen.push(desired), onTask: ({ taskId }) => seen.push(taskId), onCancelTask: (taskId) => seen.push(`-${taskId}`) }).start();
  await until('connected', () => session.connected);
  const call = gateway.calls[0]!;
  gateway.send(call, { $case: 'desired', value: { generation: 9n, spec: Buffer.from([1, 2, 255]), origin: 'operator' } });
  gateway.send(call, { $case: 'task', value: { taskId: 't1', kind: undefined } });
  gateway.send(call, { $case: 'cancelTask', value: { taskId: 't1' } });
  await until('all three', () => seen.length === 3);
  expect(seen).toEqual([{ generation: 9n, spec: Buffer.from([1, 2, 255]), origin: 'operator' }, 't1', '-t1']);
});

test('tells everything again when asked', async () => {
  gateway = await new TestGateway().start();
  await open(gateway.port).start();
  await until('connected', () => session.connected);
  gateway.received.length = 0;
  gateway.send(gateway.calls[0]!, { $case: 'reportFullState', value: {} });
  await until('all told', () => ['info', 'reported', 'telemetry'].every((kind) => gateway.kinds().includes(kind)));
});

test('comes back after the coordinator was away, and says hello anew', async () => {
  let lost = 0;
  gateway = await new TestGateway().start();
  await open(gateway.port, { onLost: () => { lost += 1; } }).start();
  await until('connected', () => session.connected);
  gateway.stop();
  await until('lost', () => !session.connected);
  expect(lost).toBe(1);
  const { port } = gateway;
  gateway = await new TestGateway().start(port);
  await until('connected again', () => session.connected);
  expect(gateway.kinds()[0]).toBe('hello');
});

test('keeps dialling where nobody listens at first', async () => {
  gateway = await new TestGateway().start();
  const { port } = gateway;
  gateway.stop();
  await open(port).start();
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect(session.connected).toBe(false);
  gateway = await new TestGateway().start(port);
  await until('connected', () => session.connected);
});

test('waits as long as a coordinator that is full asks', async () => {
  const arrivals: number[] = [];
  gateway = await new TestGateway().start(0, (call) => {
    arrivals.push(Date.now());
    if (arrivals.length > 1) return false;
    const trailers = new Metadata();
    trailers.set('retry-after-ms', '900');
    call.emit('error', { code: status.RESOURCE_EXHAUSTED, details: 'full', metadata: trailers });
    return true;
  });
  await open(gateway.port).start();
  await until('connected', () => session.connected);
  expect(arrivals[1]! - arrivals[0]!).toBeGreaterThanOrEqual(890);
});

test('an id that is taken is told with the next step, and dialled for slowly', async () => {
  const lines: string[] = [];
  const loud = createLogger('test', 'silent');
  loud.error = ((fields: unknown, message: string) => lines.push(`${JSON.stringify(fields)} ${message}`)) as unknown as typeof loud.error;
  gateway = await new TestGateway().start(0, (call) => {
    call.emit('error', { code: status.ALREADY_EXISTS, details: 'device d1 is held by another install' });
    return true;
  });
  await open(gateway.port, { log: loud }).start();
  await until('the refusal is told', () => lines.length > 0);
  expect(lines[0]).toMatch(/d1.*ALREADY_EXISTS.*another install.*--id.*refuses/);
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(gateway.calls).toHaveLength(1);
});

test('a coordinator that does not read holds nothing up and costs no memory', async () => {
  gateway = await new TestGateway().start(0, (call) => {
    gateway.send(call, { $case: 'welcome', value: { coordinatorId: 'c1', protocolVersion: 1, telemetryIntervalMs: 100, expertUseIntervalMs: 0 } });
    call.pause();
    return true;
  });
  const outbox = new StreamOutbox();
  await open(gateway.port, { outbox }).start();
  await until('connected', () => session.connected);
  const data = Buffer.alloc(256 * 1024);
  let waiting = 0;
  for (let i = 0; i < 200; i += 1) {
    if (!outbox.putUpload({ $case: 'routerWindow', value: RouterWindow.fromPartial({ windowId: String(i), data }) })) waiting += 1;
    session.flush();
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(waiting).toBeGreaterThan(100);
  await session.stop();
});

test('stopping twice is fine, and nothing dials afterwards', async () => {
  gateway = await new TestGateway().start();
  await open(gateway.port).start();
  await until('connected', () => session.connected);
  await session.stop();
  await session.stop();
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(gateway.calls).toHaveLength(1);
});
