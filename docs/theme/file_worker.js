// Search runs in a worker, which browsers refuse to pages that are opened as files. There, a hidden frame stands in.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super()
    this.waiting = []
    const frame = document.createElement("iframe")
    frame.hidden = true
    const start = () => document.body.appendChild(frame) && this.fill(frame.contentWindow, url)
    document.body ? start() : addEventListener("DOMContentLoaded", start)
  }

  fill(inner, url) {
    inner.postMessage = data => this.receive(data)
    inner.importScripts = (...urls) => Promise.all(urls.map(each => this.load(inner, each)))
    this.load(inner, url).then(() => {
      this.inner = inner
      this.waiting.forEach(data => this.postMessage(data))
    })
  }

  load(inner, url) {
    return new Promise((resolve, reject) => {
      const script = inner.document.createElement("script")
      Object.assign(script, {src: url, onload: resolve, onerror: reject})
      inner.document.body.appendChild(script)
    })
  }

  receive(data) {
    const event = new MessageEvent("message", {data})
    this.dispatchEvent(event)
    if (this.onmessage) this.onmessage(event)
  }

  postMessage(data) {
    if (this.inner) this.inner.dispatchEvent(new this.inner.MessageEvent("message", {data}))
    else this.waiting.push(data)
  }

  terminate() {}
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker
  window.Worker = IFrameWorker
}
