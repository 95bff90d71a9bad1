/**
 * A fleet for benches of fetching: Redis, a coordinator and agents, each the program that runs on devices, over the fleet's mutual
 * TLS, enrolled with tokens; agents in network namespaces of their own on one LAN with the coordinator. A model reaches the store by
 * `moefleet model push` and the devices by `moefleet model set`.
 *
 * Takes root and iproute2. The bench itself runs in a network namespace, the coordinator's, so that ports are its own.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fixtures, root } from '../shared.mjs';

const require = createRequire(import.meta.url);
const { LocalFleet } = require(join(root, 'services', 'demo', 'dist', 'local-fleet.js'));
const { moefleet } = require(join(root, 'services', 'demo', 'dist', 'command-line.js'));
const { ModelManifest } = require(join(root, 'proto', 'dist', 'index.js'));

export const MIB = 1024 ** 2;
const HERE = 'MOEFLEET_BENCH_NAMESPACE';
const GATEWAY = '10.78.0.1:7400';
const HTTP_PORT = 8400;

const run = (program, ...args) => execFileSync(program, args, { stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8' });
/** Not `ip netns exec`, which would hold a disk mounted in a namespace of its own. */
export const inside = (namespace, ...command) => run('nsenter', `--net=/run/netns/${namespace}`, ...command);
export { run };

/** Starts the program again in a network namespace of its own, and ends with its code. Returns where it is in one. */
export function inNamespace() {
  if (process.env[HERE]) return;
  try {
    execFileSync('unshare', ['--net', process.execPath, ...process.argv.slice(1)], { stdio: 'inherit', env: { ...process.env, [HERE]: '1' } });
    process.exit(0);
  } catch (error) {
    process.exit(error.status ?? 1);
  }
}

export class BenchFleet {
  constructor(folder) {
    this.folder = mkdtempSync(join(folder, 'moefleet-fetch-'));
    this.fleetFolder = join(this.folder, 'fleet');
    this.artifacts = join(this.folder, 'artifacts');
    this.namespaces = [];
    this.devices = new Map();
    this.fleet = null;
  }

  async start() {
    for (const args of [['link', 'set', 'lo', 'up'], ['link', 'add', 'lan', 'type', 'bridge'], ['addr', 'add', '10.78.0.1/16', 'dev', 'lan'], ['link', 'set', 'lan', 'up']]) run('ip', ...args);
    run(process.execPath, join(root, 'services', 'cli', 'bin', 'moefleet.js'), 'fleet', 'init', '--dir', this.fleetFolder, '--json');
    Object.assign(process.env, { MOEFLEET_CA: join(this.fleetFolder, 'ca.pem'), MOEFLEET_TOKEN_FILE: join(this.folder, 'admin.token') });
    this.fleet = new LocalFleet({ folder: this.folder, keep: false, logLevel: 'info' });
    await this.fleet.startRedis();
    await this.fleet.startCoordinator(['--tls-dir', this.fleetFolder, '--gateway', GATEWAY, '--admin-token-file', join(this.folder, 'admin.token'), '--artifact-dir', this.artifacts]);
  }

  moefleet(...args) {
    return moefleet(args, { operator: this.fleet.operator });
  }

  /** A place on the LAN for a device: its namespace, and its address there. The link is a link of its own, as `tc` shapes it. */
  addPlace(id) {
    const number = this.namespaces.length + 1;
    const namespace = `mf${process.pid % 1e6}n${number}`;
    run('ip', 'netns', 'add', namespace);
    this.namespaces.push(namespace);
    const port = `port${number}`;
    run('ip', 'link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace);
    run('ip', 'link', 'set', port, 'master', 'lan', 'up');
    const address = `10.78.${1 + (number >> 8)}.${number & 255}`;
    inside(namespace, 'ip', 'addr', 'add', `${address}/16`, 'dev', 'eth0');
    for (const link of ['lo', 'eth0']) inside(namespace, 'ip', 'link', 'set', link, 'up');
    const place = { id, namespace, port, address, token: null, child: null };
    this.devices.set(id, place);
    return place;
  }

  async tokenFor(count) {
    return (await this.moefleet('token', 'create', '--uses', String(count), '--ttl', '1d')).secret;
  }

  /** The agent's program at its place, once more where it ran before. `httpAddress`: where this program can ask it. */
  async startAgent(place, { token, stateFolder, maxCache, httpAddress = place.address, flags = [] }) {
    // On a busy machine it may take longer than whoever starts it for people would wait.
    const child = await this.fleet.startAgent({
      id: place.id, model: fixtures.model, maxCache,
      flags: ['--coordinator', GATEWAY, '--state-dir', stateFolder, '--enrol-token', token, '--http', `${httpAddress}:${HTTP_PORT}`, '--api-key', 'bench', '--memory-pressure', 'off', ...flags],
      launcher: { command: 'nsenter', args: [`--net=/run/netns/${place.namespace}`] },
    }).then((started) => started.child, async (error) => {
      const started = this.fleet.children.at(-1);
      if (started.ended) throw error;
      await started.logLine('listening', 300_000);
      return started;
    });
    place.child = child;
    place.httpUrl = `http://${httpAddress}:${HTTP_PORT}`;
  }

  /** What has arrived of models, by where from, and been served, since the agent began; null while it does not answer. */
  async traffic({ httpUrl }) {
    const text = await this.metrics(httpUrl).catch(() => null);
    if (text === null) return null;
    const of = (labels) => Number(new RegExp(`^moefleet_agent_model_bytes_total{${labels}} (\\S+)`, 'm').exec(text)?.[1] ?? 0);
    return { coordinator: of('from="coordinator",to="here"'), peers: of('from="peers",to="here"'), served: of('from="here",to="peers"') };
  }

  /** Bytes of blobs that the coordinator has sent. */
  async coordinatorSent() {
    return Number(/^moefleet_coordinator_blob_bytes_total (\S+)/m.exec(await this.metrics(this.fleet.coordinatorUrl))?.[1]);
  }

  async metrics(url) {
    const response = await fetch(`${url}/metrics`, { headers: { authorization: 'Bearer bench' }, signal: AbortSignal.timeout(5_000) });
    if (!response.ok) throw new Error(`${url}: HTTP ${response.status}`);
    return response.text();
  }

  async device(id) {
    return (await this.moefleet('devices', 'show', id)).device;
  }

  async allDevices() {
    return (await this.moefleet('devices', 'list')).devices;
  }

  async online(count, timeoutMs = 300_000) {
    await waitFor(`${count} devices online`, async () => (await this.allDevices()).filter(({ online }) => online).length >= count, timeoutMs);
  }

  /** By `model push`: what it is called, its size on disk, and what of it is distinct, which is all that has to be sent. */
  async push(path, name) {
    const { model } = await this.moefleet('model', 'push', path, '--name', name);
    const id = model.manifestSha256;
    const serialised = readFileSync(join(this.artifacts, 'chunks', id.slice(0, 2), id));
    const sizes = new Map(ModelManifest.decode(serialised).chunks.map(({ sha256, bytes }) => [sha256.toString('hex'), bytes]));
    const all = [...sizes.values()];
    return { name, id, bytes: Number(model.bytes), chunks: all.length, distinctBytes: all.reduce((sum, one) => sum + one, 0), largestChunkBytes: Math.max(...all), manifestBytes: serialised.length, sha256: await sha256Of(path) };
  }

  /** Every process of the agent, as a power cut ends it. */
  kill({ child }) {
    process.kill(-child.pid, 'SIGKILL');
  }

  async stop() {
    await this.fleet?.stop();
    for (const namespace of this.namespaces) run('ip', 'netns', 'del', namespace);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export async function sha256Of(path) {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: 4 * MIB }), hash);
  return hash.digest('hex');
}

export async function waitFor(what, look, timeoutMs, everyMs = 1_000) {
  for (const endMs = Date.now() + timeoutMs; ;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > endMs) throw new Error(`${what}: not after ${timeoutMs / 1000} s`);
    await sleep(everyMs);
  }
}

/** The reference model with experts `width` wide, packed, in `folder`. */
export function wideModel(folder, width) {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `wide-${width}.gguf`);
  run(process.execPath, join(root, 'services', 'cli', 'bin', 'moefleet.js'), 'model', 'widen', fixtures.model, path, '--width', String(width), '--json');
  return path;
}
