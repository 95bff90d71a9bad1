/**
 * How a device comes to have a certificate, keeps one, and gets one back. A token lets a device id be claimed by one
 * installation and its key; after that the key alone renews, and re-enrols within a grace period after expiry. The
 * registry decides who has an id (registry/identity-store.ts); the private key never leaves the device.
 */
import type { EnrolRequest, EnrolResponse, IssuedCertificate, ReenrolRequest, RenewRequest } from '@moefleet/proto';
import { type Logger, parseEnrolmentToken, printEnrolmentToken } from '@moefleet/runtime';
import { createHash, randomBytes, X509Certificate } from 'node:crypto';
import { BusyError, DeviceEnrolledError, DeviceRefusedError, InvalidRequestError, NoCertificateError, NotAllowedNowError, TokenRefusedError } from '../errors';
import { checkId } from '../names';
import { type TokenRecord, tokenUser } from '../registry/identity-record';
import type { Registry } from '../registry/registry';
import { type CheckedRequest, checkCertificateRequest } from './certificate-request';
import type { FleetCa } from './fleet-ca';
import { type AuthContext, deviceOf, type PeerDevice, peerDevice } from './peer-device';

/** Signatures are checked and made for strangers here: more at once wait with their callers. */
const MOST_AT_ONCE = 64;

export interface EnrolmentOptions {
  registry: Registry;
  /** valid once the coordinator has started */
  ca: () => FleetCa;
  /** in minisign's notation; empty where the fleet has none */
  bundleKey: () => string;
  now: () => number;
  /** of a device's certificate */
  lifeMs: number;
  /** after expiry, in which the key alone is enough */
  graceMs: number;
  log: Logger;
}

export class Enrolment {
  private running = 0;

  constructor(private readonly options: EnrolmentOptions) {}

  /** Who the connection's certificate says it is. Throws NoCertificateError. */
  identify(context: AuthContext): PeerDevice {
    return peerDevice(context, this.options.now());
  }

  /** The secret is told here and never again. */
  async createToken(labels: Readonly<Record<string, string>>, uses: number, ttlMs: number, why: string): Promise<{ secret: string; token: TokenRecord }> {
    const secret = randomBytes(32);
    const { id, secretHash } = hashed(secret);
    const token = await this.options.registry.identities.putToken({ id, secretHash, labels, uses, ttlMs, why, nowMs: this.options.now() });
    return { secret: printEnrolmentToken({ secret, caFingerprint: this.options.ca().fingerprint }), token };
  }

  /** Throws TokenRefusedError, DeviceEnrolledError, DeviceRefusedError, InvalidRequestError, BusyError. */
  enrol({ token, certificateRequest, deviceId, installId, hostname }: EnrolRequest): Promise<EnrolResponse> {
    return this.bounded(async () => {
      const parsedToken = parseEnrolmentToken(token);
      if (!parsedToken) throw new InvalidRequestError('token', `${token.length} characters`, 'an enrolment token such as moefleet token create prints');
      if (hostname.length > 255) throw new InvalidRequestError('hostname', `${hostname.length} characters`, 'at most 255');
      checkId('device_id', deviceId);
      checkId('install_id', installId);
      const request = await checkCertificateRequest(certificateRequest, deviceId, installId);
      const { id, secretHash } = hashed(parsedToken.secret);
      const { identities, events } = this.options.registry;
      const device = tokenUser({ deviceId, installId, keyHash: request.keyHash });
      const use = await identities.useToken(id, secretHash, device, this.options.now());
      if (use.t === 'refused') throw new TokenRefusedError(tokenText(id, use.because, use.detail));
      const claim = await identities.claim({ deviceId, installId, keyHash: request.keyHash, tokenId: id, hostname, labels: use.labels, nowMs: this.options.now() });
      if (claim.t !== 'claimed') await identities.returnToken(id, device);
      if (claim.t === 'revoked') throw revoked(deviceId, claim.why);
      if (claim.t === 'taken') throw new DeviceEnrolledError(deviceId, claim.hostname);
      events.emit({ kind: 'identity', deviceId });
      this.options.log.info({ deviceId, installId, tokenId: id, hostname }, 'device enrolled');
      return { issued: await this.issue(request, { deviceId, installId, keyHash: request.keyHash }), bundleKey: this.options.bundleKey() };
    });
  }

  /** `peer`: of the connection. Throws as `enrol`, without tokens. */
  renew({ certificateRequest }: RenewRequest, peer: PeerDevice): Promise<IssuedCertificate> {
    return this.bounded(() => this.again(certificateRequest, peer));
  }

  /** Throws also NoCertificateError, and NotAllowedNowError after the grace period. */
  reenrol({ certificate: der, certificateRequest }: ReenrolRequest): Promise<IssuedCertificate> {
    return this.bounded(async () => {
      const certificate = readCertificate(der);
      if (!this.options.ca().hasIssued(certificate)) throw new NoCertificateError('certificate: is not from this fleet; enrol the agent with --enrol-token (moefleet token create)');
      const device = deviceOf(certificate);
      const overMs = this.options.now() - Date.parse(certificate.validTo);
      if (overMs > this.options.graceMs) {
        throw new NotAllowedNowError(`device ${device.deviceId}: its certificate expired at ${certificate.validTo}, longer ago than the grace period; enrol it with --enrol-token (moefleet token create)`);
      }
      return this.again(certificateRequest, device);
    });
  }

  /** Another certificate for the same key, whose holder has proven to have it. */
  private async again(certificateRequest: Buffer, device: PeerDevice): Promise<IssuedCertificate> {
    const request = await checkCertificateRequest(certificateRequest, device.deviceId, device.installId);
    if (request.keyHash !== device.keyHash) throw new InvalidRequestError('certificate_request.key', 'another key', 'the key of the certificate');
    const known = await this.options.registry.identities.read(device.deviceId);
    if (known?.revokedMs) throw revoked(device.deviceId, known.revokedWhy);
    if (known?.releasedMs || (known?.keyHash && known.keyHash !== device.keyHash)) {
      throw new DeviceRefusedError(device.deviceId, 'the id was released, or another installation has enrolled under it since; enrol this one with --enrol-token (moefleet token create)');
    }
    return this.issue(request, device);
  }

  private async issue({ publicKey }: CheckedRequest, { deviceId, installId }: PeerDevice): Promise<IssuedCertificate> {
    const issued = await this.options.ca().issueDevice(publicKey, deviceId, installId, this.options.now(), this.options.lifeMs);
    await this.options.registry.identities.noteCertificate(deviceId, issued.notAfterMs);
    return { chainPem: issued.chainPem, notAfterMs: BigInt(issued.notAfterMs) };
  }

  private async bounded<T>(work: () => Promise<T>): Promise<T> {
    if (this.running >= MOST_AT_ONCE) throw new BusyError(`${MOST_AT_ONCE} devices are being given certificates; try again in a moment`);
    this.running += 1;
    try {
      return await work();
    } finally {
      this.running -= 1;
    }
  }
}

/** The id is part of the hash, so that it tells nothing of the secret. */
function hashed(secret: Buffer): { id: string; secretHash: string } {
  const secretHash = createHash('sha256').update(secret).digest('hex');
  return { id: secretHash.slice(0, 12), secretHash };
}

function tokenText(id: string, because: string, detail: string): string {
  const next = 'make another with: moefleet token create';
  if (because === 'used up') return `enrolment token ${id}: used up (${detail} of ${detail} devices); ${next}`;
  if (because === 'expired') return `enrolment token ${id}: expired at ${new Date(Number(detail) || 0).toISOString()}; ${next}`;
  if (because === 'revoked') return `enrolment token ${id}: revoked${detail ? ` (${detail})` : ''}; ${next}`;
  return `enrolment token ${id}: not known to this fleet; ${next}`;
}

function revoked(deviceId: string, why: string): DeviceRefusedError {
  return new DeviceRefusedError(deviceId, `revoked${why ? ` (${why})` : ''}; take it back with: moefleet device unrevoke ${deviceId}`);
}

function readCertificate(der: Buffer): X509Certificate {
  try {
    if (der.length > 8192) throw new Error('too long');
    return new X509Certificate(der);
  } catch {
    throw new InvalidRequestError('certificate', `${der.length} bytes`, 'a certificate in DER');
  }
}
