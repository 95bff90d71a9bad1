/** The machine a coordinator runs on: its Redis, its folder with the CA, its own word on its health. */
import { accessSync, constants, existsSync, readFileSync, statfsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { CoordinatorConfig, RedisCheckup } from '@moefleet/coordinator/main';
import { formatSize, parsePublicKey } from '@moefleet/runtime';
import { older } from '../deploy/device-check';
import { type Check, Checks } from './check';
import { checkCa } from './operator-machine';

const LEAST_REDIS = '6.2';
/** A push to a thousand devices makes some thousand commands. */
const SLOW_REDIS_MS = 5;
/** One per device, and some. */
const FEW_DESCRIPTORS = 4096;
const HEALTH_TIMEOUT_MS = 2000;
/** A model of some size does not fit. */
const LITTLE_SPACE = 8 * 1024 ** 3;
const LITTLE_SHARE = 0.05;

export function checkRedis(redis: RedisCheckup): Check[] {
  const checks = new Checks(`Redis ${redis.url}`);
  if (redis.error !== null) {
    checks.add('broken', 'answers', redis.error, 'start it (redis-server --appendonly yes), or name another with --redis-url');
    return checks.all;
  }
  checks.add(redis.roundTripMs > SLOW_REDIS_MS ? 'slow' : 'ok', 'answers', `in ${redis.roundTripMs.toFixed(2)} ms`, redis.roundTripMs > SLOW_REDIS_MS ? 'put it near the coordinators; see redis-cli --latency' : '');
  if (older(redis.version, LEAST_REDIS)) checks.add('broken', 'version', `${redis.version}, needed is ${LEAST_REDIS}`, 'install a newer Redis');
  else checks.add('ok', 'version', redis.version);
  if (redis.appendOnly) checks.add('ok', 'persistence', 'every write is in its log (AOF)');
  else checks.add('slow', 'persistence', 'no append-only file: what was set since the last dump is lost with it', 'redis-cli config set appendonly yes, and the same in redis.conf');
  if (redis.evictionPolicy !== '' && redis.evictionPolicy !== 'noeviction') checks.add('broken', 'eviction', `${redis.evictionPolicy}: it may forget pins and desired specs`, 'redis-cli config set maxmemory-policy noeviction, and the same in redis.conf');
  if (redis.maxMemoryBytes > 0 && redis.usedMemoryBytes > 0.8 * redis.maxMemoryBytes) checks.add('slow', 'memory', `${formatSize(redis.usedMemoryBytes)} of ${formatSize(redis.maxMemoryBytes)} used`, 'give it more: redis-cli config set maxmemory SIZE');
  if (redis.role === 'slave') checks.add('broken', 'role', 'a replica, which refuses writes', 'name the master, or the Sentinels with --redis-sentinel NAME');
  return checks.all;
}

/** `limits`: the text of /proc/self/limits. */
export function checkFleetFolder(config: Pick<CoordinatorConfig, 'tlsFolder'>, limits: string, nowMs: number): Check[] {
  const checks = new Checks('coordinator here');
  const { tlsFolder } = config;
  if (tlsFolder === null) checks.add('note', 'TLS', 'off: devices and operators of this machine alone, in plaintext', 'moefleet fleet init --dir fleet, then coordinator run --tls-dir fleet');
  else {
    checkCa(checks, join(tlsFolder, 'ca.pem'), nowMs);
    const key = join(tlsFolder, 'ca-key.pem');
    if (!existsSync(key)) checks.add('broken', 'CA\'s key', `${key} is missing: nobody can enrol or renew`, 'copy it from where the fleet was made');
    else if ((statSync(key).mode & 0o077) !== 0) checks.add('broken', 'CA\'s key', `${key} can be read by others: whoever has it is the fleet`, `chmod 600 ${key}`);
    else checks.add('ok', 'CA\'s key', key);
    checkBundleKey(checks, join(tlsFolder, 'bundle-key.pub'));
  }
  const descriptors = Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Infinity);
  if (descriptors < FEW_DESCRIPTORS) checks.add('slow', 'open files', `at most ${descriptors}, and each device takes one`, 'ulimit -n 65536, or LimitNOFILE= in its unit');
  return checks.all;
}

function checkBundleKey(checks: Checks, file: string): void {
  const make = 'npm run bundle:keygen, and its bundle-key.pub there; it counts from the next enrolment on';
  if (!existsSync(file)) return checks.add('note', 'bundle key', `${file} is missing: devices that enrol pin none, and cannot be upgraded from here`, make);
  try {
    checks.add('ok', 'bundle key', `${parsePublicKey(readFileSync(file, 'utf8')).keyId}, pinned by devices that enrol`);
  } catch (error) {
    checks.add('broken', 'bundle key', `${file}: ${(error as Error).message}`, make);
  }
}

/** Where what devices fetch is kept: a folder is looked at, a bucket is asked by whoever serves from it. */
export function checkStoreFolder(config: Pick<CoordinatorConfig, 'artifactFolder' | 'artifactS3'>): Check[] {
  const checks = new Checks('coordinator here');
  const { artifactFolder: folder, artifactS3: bucket } = config;
  if (bucket) checks.add('note', 'models', `kept in s3://${bucket.bucket}/${bucket.prefix}`, 'whether it answers: moefleet model list');
  if (folder === null) {
    if (!bucket) checks.add('note', 'models', 'none are kept, nor releases of the agent', 'coordinator run --artifact-dir FOLDER');
    return checks.all;
  }
  try {
    // It is made at the first push; until then its nearest parent says.
    let there = folder;
    while (!existsSync(there)) there = dirname(there);
    if (!statSync(there).isDirectory()) throw new Error(`${there} is no folder`);
    accessSync(there, constants.W_OK | constants.X_OK);
    const { bavail, bsize, blocks } = statfsSync(there);
    const free = bavail * bsize;
    const little = free < LITTLE_SPACE || free < blocks * bsize * LITTLE_SHARE;
    checks.add(little ? 'slow' : 'ok', 'store', `${folder}, ${formatSize(free)} free`, little ? 'moefleet model remove NAME, or a larger disk' : '');
  } catch (error) {
    checks.add('broken', 'store', `${folder} cannot be written: ${(error as Error).message}`, 'give it to the user that the coordinator runs as, or name another with --artifact-dir');
  }
  return checks.all;
}

/** Whether one runs here, by its own HTTP address. */
export async function checkHealth(config: Pick<CoordinatorConfig, 'http'>): Promise<Check[]> {
  const checks = new Checks('coordinator here');
  const { host, port } = config.http;
  const url = `http://${host.includes(':') ? `[${host}]` : host}:${port}/healthz`;
  try {
    const answer = await (await fetch(url, { signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) })).json() as { status?: string; redis?: string };
    if (answer.status === 'ok') checks.add('ok', 'runs', url);
    else checks.add('broken', 'runs', `${url} says ${String(answer.status).slice(0, 40)}, Redis is ${String(answer.redis).slice(0, 40)}`, 'see the lines on Redis');
  } catch {
    checks.add('note', 'runs', `nothing answers at ${url}`, 'moefleet coordinator run');
  }
  return checks.all;
}

export function readLimits(): string {
  try {
    return readFileSync('/proc/self/limits', 'utf8');
  } catch {
    return '';
  }
}
