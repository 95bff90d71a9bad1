/** Coordinators killed, Redis stopped and connections cut while telemetry flows: what is counted equals what the devices counted. */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { freePort, until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { TcpProxy } from '../../../test/harness/tcp-proxy';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

const PROGRAM = join(__dirname, '../../../services/cli/bin/moefleet.js');
let redis: TestRedis;
let survivor: TestCoordinator;
let balancer: TcpProxy;
let devices: Device[];

/** Dials again whenever its stream ends, as an agent does; counts on all the while. */
class Device {
  private agent: TestAgent | null = null;
  private sequence = 0n;
  tokens = 0n;
  stopped = false;
  readonly done: Promise<void>;

  constructor(readonly id: string, private readonly address: string) {
    this.done = this.run();
  }

  get connected(): boolean {
    return this.agent?.welcome !== null && this.agent?.ended === null;
  }

  private async run(): Promise<void> {
    while (!this.stopped) {
      if (!this.agent || this.agent.ended) {
        this.agent?.kill();
        this.agent = new TestAgent(this.address, { id: this.id, bootId: 'one-boot' });
        this.agent.hello();
      }
      if (this.connected) {
        this.tokens += 3n;
        this.sequence += 1n;
        this.agent.telemetry({ sequence: this.sequence, decodeTokens: this.tokens });
      }
      await new Promise((resolve) => setTimeout(resolve, 40));
    }
    this.agent?.kill();
  }
}

beforeEach(async () => {
  redis = await startRedis();
  survivor = await startCoordinator(redis.url, { id: 'survivor' });
  balancer = await new TcpProxy(placeOf(survivor.gateway)).start();
  devices = [];
});
afterEach(async () => {
  for (const device of devices) device.stopped = true;
  await Promise.all(devices.map((device) => device.done));
  await balancer.stop();
  await survivor.close();
  await redis.close();
});

function placeOf(address: string): { host: string; port: number } {
  return { host: '127.0.0.1', port: Number(address.split(':').at(-1)) };
}

function join3(): void {
  devices = ['a', 'b', 'c'].map((id) => new Device(id, balancer.address));
}

const counted = async () => (await survivor.registry.telemetry.sums()).all.decodeTokens;
const boots = async () => (await survivor.registry.telemetry.sums()).boots;
const sent = () => devices.reduce((sum, { tokens }) => sum + tokens, 0n);
/** Devices count on, so both figures move: the count must reach what had been sent, and never pass what is. */
async function catchesUp(): Promise<void> {
  await until('all are connected', () => devices.every((device) => device.connected), 20_000, 20);
  const goal = sent();
  await until('what was sent is counted', async () => await counted() >= goal, 20_000, 20);
  const now = await counted();
  expect(now).toBeLessThanOrEqual(sent());
}

async function startProcess(): Promise<{ child: ChildProcess; place: { host: string; port: number } }> {
  const port = await freePort();
  const child = spawn(process.execPath, [PROGRAM, 'coordinator', 'run', '--redis-url', redis.url, '--redis-prefix', survivor.prefix, '--learn-every', '0',
    '--gateway', `127.0.0.1:${port}`, '--operator', '127.0.0.1:0', '--http', '127.0.0.1:0', '--coordinator-id', 'victim', '--log-level', 'silent'], { stdio: 'ignore' });
  await until('the victim is alive', async () => (await survivor.registry.coordinators.all()).some(({ id }) => id === 'victim'));
  return { child, place: { host: '127.0.0.1', port } };
}

test('a coordinator killed with -9: devices go to the other, nothing is lost or doubled, none is seen as offline', async () => {
  const { child, place } = await startProcess();
  balancer.target = place;
  join3();
  await catchesUp();
  expect((await survivor.registry.devices.readAll()).map((device) => device.lease?.coordinatorId)).toEqual(['victim', 'victim', 'victim']);
  balancer.target = placeOf(survivor.gateway);
  child.kill('SIGKILL');
  await until('all are with the survivor', async () => {
    const leases = (await survivor.registry.devices.readAll()).map((device) => device.lease?.coordinatorId);
    expect(leases.every(Boolean)).toBe(true);
    return leases.every((id) => id === 'survivor');
  }, 20_000, 20);
  await catchesUp();
  await until('each device has been counted', async () => await boots() >= 3n);
  expect(await boots()).toBe(3n);
}, 60_000);

test('connections cut again and again, and slow ones: nothing is lost or doubled', async () => {
  join3();
  for (let round = 0; round < 4; round += 1) {
    balancer.delayMs = round % 2 === 0 ? 0 : 30;
    await catchesUp();
    balancer.cut();
  }
  await catchesUp();
  await until('each device has been counted', async () => await boots() >= 3n);
  expect(await boots()).toBe(3n);
}, 60_000);

test('Redis gone and back: streams hold, what was shed is made up for', async () => {
  join3();
  await catchesUp();
  await redis.stop();
  await until('it is noticed', () => !survivor.registry.link.up, 5000, 5);
  const before = sent();
  await until('devices count on', () => sent() > before + 60n, 10_000, 20);
  expect(devices.every((device) => device.connected)).toBe(true);
  await redis.start();
  await until('it is back', () => survivor.registry.link.up, 10_000, 20);
  await catchesUp();
  expect(await (await fetch(`${survivor.http}/metrics`)).text()).toMatch(/telemetry_frames_total\{outcome="shed"\} [1-9]/);
}, 60_000);
