/** The device at the other end of a connection, as its certificate tells. */
import type { ServerUnaryCall } from '@grpc/grpc-js';
import { createHash, X509Certificate } from 'node:crypto';
import type { Hello } from '@moefleet/proto';
import { DeviceRefusedError, NoCertificateError } from '../errors';

/** What grpc-js knows of a connection's other end; it does not export the type. */
export type AuthContext = ReturnType<ServerUnaryCall<unknown, unknown>['getAuthContext']>;

export interface PeerDevice {
  deviceId: string;
  installId: string;
  /** hex SHA-256 of the public key in SPKI */
  keyHash: string;
}

/**
 * TLS has checked that the fleet's CA signed it for a client and that the peer has its key; what it would not accept
 * is not told apart here. Throws NoCertificateError.
 */
export function peerDevice({ sslPeerCertificate }: AuthContext, nowMs: number): PeerDevice {
  if (!sslPeerCertificate?.raw) {
    throw new NoCertificateError('no certificate that this fleet has given out and that is valid now came with the connection; enrol the agent with --enrol-token (moefleet token create), and check its clock');
  }
  return plainDevice(sslPeerCertificate, nowMs) ?? deviceOf(new X509Certificate(sslPeerCertificate.raw), nowMs);
}

/** Of a public key on P-256 in SPKI, all that comes before the 65 bytes of the point. */
const P256_SPKI = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d030107034200', 'hex');

/**
 * From what TLS has parsed already, for a certificate as this fleet gives them out; null for any other. Parsing it anew
 * takes as long as all else that is done for a connection here.
 */
function plainDevice({ subject, pubkey, asn1Curve, valid_to: validTo }: NonNullable<AuthContext['sslPeerCertificate']>, nowMs: number): PeerDevice | null {
  const { CN: deviceId, OU: installId } = subject as Record<string, unknown>;
  if (typeof deviceId !== 'string' || typeof installId !== 'string' || asn1Curve !== 'prime256v1' || pubkey?.length !== 65) return null;
  if (!(Date.parse(validTo) > nowMs)) return null;
  return { deviceId, installId, keyHash: keyHashOf(Buffer.concat([P256_SPKI, pubkey])) };
}

/** Throws NoCertificateError where it has expired or is no device's. */
export function deviceOf(certificate: X509Certificate, nowMs = 0): PeerDevice {
  const subject = Object.fromEntries(certificate.subject.split('\n').map((part) => [part.slice(0, part.indexOf('=')), part.slice(part.indexOf('=') + 1)]));
  const { CN: deviceId, OU: installId } = subject;
  if (!deviceId || !installId) throw new NoCertificateError(`the certificate with the subject "${certificate.subject.replaceAll('\n', ', ')}" is no device's`);
  if (Date.parse(certificate.validTo) <= nowMs) throw new NoCertificateError(`device ${deviceId}: its certificate expired at ${certificate.validTo}; the agent gets a new one by itself within the grace period, then with --enrol-token`);
  return { deviceId, installId, keyHash: keyHashOf(certificate.publicKey.export({ type: 'spki', format: 'der' })) };
}

/** `spki`: DER */
export function keyHashOf(spki: Uint8Array | ArrayBuffer): string {
  return createHash('sha256').update(new Uint8Array(spki)).digest('hex');
}

/** Throws DeviceRefusedError where a device says that it is another. */
export function checkPeer(hello: Hello, peer: PeerDevice): void {
  if (hello.deviceId !== peer.deviceId) throw new DeviceRefusedError(peer.deviceId, `says hello as ${hello.deviceId}; its certificate is for its own id alone`);
  if (hello.installId !== peer.installId) throw new DeviceRefusedError(peer.deviceId, `says hello as installation ${hello.installId}; its certificate is for ${peer.installId}. Enrol this installation with --enrol-token`);
}
