/**
 * Signatures in minisign's format (Ed25519 over the BLAKE2b-512 of the file, with a trusted comment that is signed
 * too), so that `minisign -V` verifies what is signed here and the other way round. The format:
 * https://jedisct1.github.io/minisign/. The key id is the first 8 bytes of the public key's SHA-256.
 */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto';
import { createReadStream } from 'node:fs';

const ALGORITHM = 'Ed';
/** of a signature over the file's digest; `Ed` here would be over the file itself, which minisign no longer writes */
const PREHASHED = 'ED';
/** DER of a SubjectPublicKeyInfo for Ed25519 up to the 32 bytes of the key (RFC 8410). */
const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex');
const TRUSTED = 'trusted comment: ';
/** A signature or key is a few hundred bytes. */
const TEXT_BOUND = 4096;

/** A file that is not what its signature says, or a signature or key that is none. */
export class SignatureError extends Error {
  override readonly name = 'SignatureError';
}

export interface PublicKey { readonly keyId: string; readonly key: KeyObject; readonly text: string; }

/** `text`: the file's content, or its second line alone (as `minisign -P` takes it). */
export function parsePublicKey(text: string): PublicKey {
  const line = text.slice(0, TEXT_BOUND).trim().split(/\r?\n/).filter((part) => !part.startsWith('untrusted comment:')).join('').trim();
  const bytes = base64(line, 42);
  if (!bytes || bytes.toString('latin1', 0, 2) !== ALGORITHM) {
    throw new SignatureError(`"${line.slice(0, 80)}" is no public key; expected the 56 characters that keygen has written, beginning with RW`);
  }
  return { keyId: keyIdText(bytes.subarray(2, 10)), key: createPublicKey({ key: Buffer.concat([SPKI_PREFIX, bytes.subarray(10)]), format: 'der', type: 'spki' }), text: line };
}

/** The public half of a private key in PEM, in minisign's notation. */
export function publicKeyOf(privatePem: string): PublicKey {
  const raw = rawPublicKey(privateKey(privatePem));
  return parsePublicKey(Buffer.concat([Buffer.from(ALGORITHM), keyIdOf(raw), raw]).toString('base64'));
}

/** The signature file's content. `digest`: BLAKE2b-512 of what is signed. */
export function signDigest(digest: Buffer, privatePem: string, trustedComment: string): string {
  if (/[\r\n]/.test(trustedComment)) throw new SignatureError('a trusted comment is one line');
  const key = privateKey(privatePem);
  const signature = sign(null, digest, key);
  const comment = sign(null, Buffer.concat([signature, Buffer.from(trustedComment)]), key);
  const head = Buffer.concat([Buffer.from(PREHASHED), keyIdOf(rawPublicKey(key)), signature]);
  return `untrusted comment: signature of a moefleet bundle\n${head.toString('base64')}\n${TRUSTED}${trustedComment}\n${comment.toString('base64')}\n`;
}

/** Returns the trusted comment. Throws SignatureError where the signature is not that of `key` over `digest`. */
export function verifyDigest(digest: Buffer, signatureText: string, key: PublicKey): string {
  const [, headLine = '', commentLine = '', commentSignatureLine = ''] = signatureText.slice(0, TEXT_BOUND).split(/\r?\n/);
  const head = base64(headLine, 74);
  const commentSignature = base64(commentSignatureLine, 64);
  if (!head || !commentSignature || !commentLine.startsWith(TRUSTED)) {
    throw new SignatureError('this is no signature in minisign\'s format; expected four lines, the second and fourth in base64');
  }
  const algorithm = head.toString('latin1', 0, 2);
  if (algorithm !== PREHASHED) throw new SignatureError(`the signature is of kind "${algorithm}"; sign it with the default kind, ${PREHASHED}`);
  const keyId = keyIdText(head.subarray(2, 10));
  if (keyId !== key.keyId) throw new SignatureError(`signed by key ${keyId}, expected ${key.keyId}; sign it with the fleet's bundle key`);
  const signature = head.subarray(10);
  const comment = commentLine.slice(TRUSTED.length);
  if (!verify(null, digest, key.key, signature)) throw new SignatureError(`the content does not match its signature by key ${keyId}; fetch or build it again`);
  if (!verify(null, Buffer.concat([signature, Buffer.from(comment)]), key.key, commentSignature)) throw new SignatureError(`the trusted comment does not match its signature by key ${keyId}`);
  return comment;
}

/** BLAKE2b-512 of a file of any size. */
export async function fileDigest(path: string): Promise<Buffer> {
  const hash = createHash('blake2b512');
  for await (const part of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(part as Buffer);
  return hash.digest();
}

function privateKey(pem: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch (cause) {
    throw new SignatureError('this is no private key in PEM; make one with: npm run bundle:keygen', { cause });
  }
  if (key.asymmetricKeyType !== 'ed25519') throw new SignatureError(`the key is of type ${key.asymmetricKeyType}; expected ed25519`);
  return key;
}

function rawPublicKey(key: KeyObject): Buffer {
  return createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(SPKI_PREFIX.length);
}

function keyIdOf(rawKey: Buffer): Buffer {
  return createHash('sha256').update(rawKey).digest().subarray(0, 8);
}

/** As minisign prints it: a little-endian number in hexadecimal. */
function keyIdText(bytes: Buffer): string {
  return Buffer.from(bytes).reverse().toString('hex').toUpperCase();
}

/** null unless it is exactly `bytes` long. */
function base64(text: string, bytes: number): Buffer | null {
  const decoded = Buffer.from(text, 'base64');
  return decoded.length === bytes && decoded.toString('base64') === text ? decoded : null;
}
