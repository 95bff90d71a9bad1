/** Checks a certificate request (PKCS #10) before anything is signed. What comes in is untrusted to the last byte. */
import 'reflect-metadata';
import * as x509 from '@peculiar/x509';
import { InvalidRequestError } from '../errors';
import { keyHashOf } from './peer-device';

/** A request for a P-256 key takes some 300 bytes. */
const MOST_BYTES = 4096;

export interface CheckedRequest { publicKey: x509.PublicKey; keyHash: string }

/** Throws InvalidRequestError: the bytes, the key, the subject or the signature is not what it has to be. */
export async function checkCertificateRequest(der: Buffer, deviceId: string, installId: string): Promise<CheckedRequest> {
  const field = 'certificate_request';
  if (der.length === 0 || der.length > MOST_BYTES) throw new InvalidRequestError(field, `${der.length} bytes`, `a request of 1 to ${MOST_BYTES} bytes`);
  const request = await parsed(der, field);
  const { name, namedCurve } = request.publicKey.algorithm as { name: string; namedCurve?: string };
  if (name !== 'ECDSA' || namedCurve !== 'P-256') throw new InvalidRequestError(`${field}.key`, `${name} ${namedCurve ?? ''}`.trim(), 'an ECDSA P-256 key');
  for (const [part, expected] of [['CN', deviceId], ['OU', installId]] as const) {
    const found = request.subjectName.getField(part);
    if (found.length !== 1 || found[0] !== expected) throw new InvalidRequestError(`${field}.subject.${part}`, found.join(','), `${expected}, as in the request around it`);
  }
  if (!await request.verify().catch(() => false)) throw new InvalidRequestError(`${field}.signature`, 'a signature', 'one by the key in it');
  return { publicKey: request.publicKey, keyHash: keyHashOf(request.publicKey.rawData) };
}

async function parsed(der: Buffer, field: string): Promise<x509.Pkcs10CertificateRequest> {
  try {
    const request = new x509.Pkcs10CertificateRequest(der);
    await request.publicKey.export();
    return request;
  } catch {
    throw new InvalidRequestError(field, `${der.length} bytes`, 'a PKCS #10 request in DER with a key on its curve');
  }
}
