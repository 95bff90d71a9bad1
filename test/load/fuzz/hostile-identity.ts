/**
 * Peers that want in with what is not theirs: certificates of another fleet, expired, revoked, of an installation that has
 * been replaced, another device's id under a certificate of one's own; tokens that are stolen, used up, revoked, over or
 * made up; requests for certificates that are no such thing. None of them may get in, and a token gives no more than its uses.
 */
import 'reflect-metadata';
import * as x509 from '@peculiar/x509';
import { FleetCa } from '@moefleet/coordinator/identity/fleet-ca';
import { type EnrolmentToken, EnrolRequest, type IdentityServiceClient, ReenrolRequest, RenewRequest } from '@moefleet/proto';
import { generateKeyPair, type KeyObject, webcrypto, X509Certificate } from 'node:crypto';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createSecureContext } from 'node:tls';
import { printEnrolmentToken } from '@moefleet/runtime';
import type { ClientTls } from '../hollow-fleet/grpc-stream';
import type { Random } from './random';

export interface Attempt {
  /** what it tries, in words */
  kind: string;
  path: string;
  certificate: ClientTls | null;
  messages: Buffer[];
}

const AGENT = '/moefleet.v1.AgentService/Connect';
const ENROL = '/moefleet.v1.EnrolmentService/Enrol';
const RENEW = '/moefleet.v1.EnrolmentService/Renew';
const REENROL = '/moefleet.v1.EnrolmentService/Reenrol';
const HOUR_MS = 3_600_000;
/** Of the token that is good. */
const USES = 3;

interface Device { id: string; installId: string; keys: webcrypto.CryptoKeyPair; tls: ClientTls; certificate: Buffer }

export class HostileIdentities {
  private foreign!: Device[];
  private own!: Device;
  private revoked!: Device;
  private expired!: Device;
  private replaced!: Device;
  private victim!: Device;
  private tokens: { kind: string; secret: string }[] = [];
  private goodToken = '';
  private requests: Buffer[] = [];

  /** `helloOf`: as which device and installation an agent says hello. */
  constructor(private readonly tlsFolder: string, private readonly identities: IdentityServiceClient, private readonly random: Random, private readonly helloOf: (id: string, installId: string) => Buffer) {}

  /** `call` makes an attempt and tells its gRPC status. */
  async prepare(honestId: string, call: (attempt: Attempt) => Promise<string>): Promise<void> {
    const fleet = await FleetCa.load(this.tlsFolder);
    const other = await FleetCa.create(join(this.tlsFolder, 'another'), { name: 'another', hosts: [] }, Date.now());
    this.foreign = [await device(other, honestId, `install-${honestId}`), await device(other, 'foreign', 'install-foreign')];
    [this.own, this.revoked, this.expired, this.victim] = await Promise.all([
      device(fleet, 'own', 'install-own'), device(fleet, 'revoked', 'install-revoked'), device(fleet, 'expired', 'install-expired', -HOUR_MS), device(fleet, 'victim', 'install-victim'),
    ] as const) as [Device, Device, Device, Device];
    this.requests = [await requestOf(this.own), await requestOf(this.victim), await requestOf({ ...this.own, id: honestId })];

    await this.ask('revokeDevice', { deviceId: 'revoked', why: 'stolen' });
    const token = async (uses: number, ttlMs: number) => (await this.ask<{ secret: string; token: EnrolmentToken }>('createEnrolmentToken', { labels: {}, uses, ttlMs: BigInt(ttlMs), why: 'fuzz' }));
    const [good, gone, over] = [await token(USES, HOUR_MS), await token(1, HOUR_MS), await token(1, 1)];
    this.goodToken = good.secret;
    await this.ask('revokeEnrolmentToken', { id: gone.token.id, why: 'lost' });
    this.tokens = [
      { kind: 'a revoked token', secret: gone.secret }, { kind: 'an expired token', secret: over.secret },
      { kind: 'a token that was made up', secret: printEnrolmentToken({ secret: Buffer.alloc(32, 7), caFingerprint: fleet.fingerprint }) },
      { kind: 'a token of another fleet', secret: printEnrolmentToken({ secret: Buffer.alloc(32, 9), caFingerprint: other.fingerprint }) },
    ];
    // An installation that had its id until it was released.
    this.replaced = await device(fleet, 'replaced', 'install-before');
    const own = await token(1, HOUR_MS);
    const enrolled = await call(this.enrol('itself', own.secret, 'replaced', 'install-before', await requestOf(this.replaced)));
    if (enrolled !== '0') throw new Error(`a device that is as it should be was not enrolled: status ${enrolled}`);
    await this.ask('releaseDevice', { deviceId: 'replaced', why: 'a new SD card' });
    this.tokens.push({ kind: 'a token that is used up', secret: own.secret });
  }

  /** One of many; none may succeed. */
  next(honestId: string): Attempt {
    const { random } = this;
    const hello = (kind: string, certificate: ClientTls | null, id: string, installId: string): Attempt => ({ kind, path: AGENT, certificate, messages: [this.helloOf(id, installId)] });
    const token = random.of(this.tokens);
    const stranger = `stranger-${random.below(1000)}`;
    switch (random.below(13)) {
      case 0: return hello('a certificate of another fleet', this.foreign[0]!.tls, honestId, `install-${honestId}`);
      case 1: return hello('a certificate of another fleet', this.foreign[1]!.tls, 'foreign', 'install-foreign');
      case 2: return hello('another device\'s id', this.own.tls, honestId, `install-${honestId}`);
      case 3: return hello('another installation', this.own.tls, 'own', 'install-thief');
      case 4: return hello('a revoked certificate', this.revoked.tls, 'revoked', 'install-revoked');
      case 5: return hello('an expired certificate', this.expired.tls, 'expired', 'install-expired');
      case 6: return hello('a certificate of who had the id before', this.replaced.tls, 'replaced', 'install-before');
      case 7: return hello('no certificate', null, honestId, `install-${honestId}`);
      case 8: return this.enrol(token.kind, token.secret, 'own', 'install-own', this.requests[0]!);
      case 9: return this.enrol('a stolen token for another\'s id', this.goodToken, honestId, 'install-own', this.requests[2]!);
      // Somebody else's certificate, as anybody can see it, with a request of one's own.
      case 10: return { kind: 'a replayed certificate', path: REENROL, certificate: null, messages: [Buffer.from(ReenrolRequest.encode({ certificate: this.victim.certificate, certificateRequest: this.requests[0]! }).finish())] };
      case 11: return { kind: 'renewal for another device', path: RENEW, certificate: this.own.tls, messages: [Buffer.from(RenewRequest.encode({ certificateRequest: this.requests[1]! }).finish())] };
      default: return this.enrol('a hostile request', random.next() < 0.5 ? this.goodToken : token.secret, stranger, `install-${stranger}`, this.hostileRequest());
    }
  }

  /** Devices that are as they should be come with the token that the attempts have used too: it lets in as many as it says. */
  async useUp(call: (attempt: Attempt) => Promise<string>): Promise<{ letIn: number; uses: number }> {
    let letIn = 0;
    for (let at = 0; at < USES + 5; at += 1) {
      const id = `enrolled-${at}`;
      const keys = await makeKeys();
      const certificateRequest = await requestOf({ id, installId: `install-${id}`, keys });
      if (await call(this.enrol('a token', this.goodToken, id, `install-${id}`, certificateRequest)) === '0') letIn += 1;
    }
    return { letIn, uses: USES };
  }

  private enrol(kind: string, token: string, deviceId: string, installId: string, certificateRequest: Buffer): Attempt {
    return { kind, path: ENROL, certificate: null, messages: [Buffer.from(EnrolRequest.encode({ token, deviceId, installId, hostname: 'h', certificateRequest }).finish())] };
  }

  /** One that was good, damaged; or of a kind that is none. */
  private hostileRequest(): Buffer {
    const { random } = this;
    const chance = random.next();
    if (chance < 0.1) return random.bytes(random.below(5000));
    const bytes = Buffer.from(random.of(this.requests));
    for (let times = 1 + random.below(6); times > 0; times -= 1) bytes[random.below(bytes.length)] = random.below(256);
    return chance < 0.2 ? bytes.subarray(0, random.below(bytes.length)) : bytes;
  }

  private ask<T>(method: 'revokeDevice' | 'releaseDevice' | 'createEnrolmentToken' | 'revokeEnrolmentToken', request: object): Promise<T> {
    const client = this.identities as unknown as Record<string, (request: object, done: (error: unknown, answer: T) => void) => void>;
    return new Promise((resolve, reject) => client[method]!(request, (error, answer) => (error ? reject(error) : resolve(answer))));
  }
}

async function makeKeys(): Promise<webcrypto.CryptoKeyPair> {
  return await webcrypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']) as webcrypto.CryptoKeyPair;
}

async function device(ca: FleetCa, id: string, installId: string, lifeMs = HOUR_MS): Promise<Device> {
  const { publicKey, privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' }) as unknown as { publicKey: KeyObject; privateKey: KeyObject };
  const pkcs8 = privateKey.export({ type: 'pkcs8', format: 'der' });
  const spki = publicKey.export({ type: 'spki', format: 'der' });
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256' };
  const keys = {
    privateKey: await webcrypto.subtle.importKey('pkcs8', pkcs8, algorithm, true, ['sign']),
    publicKey: await webcrypto.subtle.importKey('spki', spki, algorithm, true, ['verify']),
  };
  const { chainPem } = await ca.issueDevice(new x509.PublicKey(spki), id, installId, Date.now(), lifeMs);
  const key = privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
  return { id, installId, keys, certificate: new X509Certificate(chainPem).raw, tls: { context: createSecureContext({ cert: chainPem, key }), cert: chainPem, key, servername: '' } };
}

async function requestOf({ id, installId, keys }: Pick<Device, 'id' | 'installId' | 'keys'>): Promise<Buffer> {
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: new x509.Name([{ CN: [id] }, { OU: [installId] }]).toString(), keys, signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' },
  });
  return Buffer.from(request.rawData);
}
